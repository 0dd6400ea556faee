"""The gRPC embedding server: pixels and a mask in, PHS embedding and state out; and exact reranking."""

import os

# gRPC's core writes a line to stderr for calls of its own displeasure, which anybody can make.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Between two parallel steps the threads that torch computes with on a CPU (libgomp's) wait by spinning, for
# milliseconds. Where anything else wants a core, and be it the process that decodes, the thread that spins keeps away
# the one that it waits for: a picture took three times the processor time (benchmarks/README.md). Read when torch is
# first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
