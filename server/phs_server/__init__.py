"""The gRPC embedding server: pixels and a mask in, PHS embedding and state out; and exact reranking."""
