"""`phs-milvus demo`: ingests pictures, searches with and without a prompt, and shows both side by side. See run.py."""
