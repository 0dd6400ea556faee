"""The gRPC embedding server: pixels and a mask in, PHS embedding and state out; and exact reranking."""

import os

# gRPC's core writes a line to stderr for calls of its own displeasure, which anybody can make.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
