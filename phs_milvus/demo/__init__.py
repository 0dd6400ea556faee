"""`phs-milvus demo`: ingest, search with and without a prompt, and show both side by side. See run.py."""
