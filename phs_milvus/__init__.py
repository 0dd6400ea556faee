"""Search a Milvus image collection by the thing you point at."""
