"""Focused search: candidates from Milvus, then exact reranking."""
