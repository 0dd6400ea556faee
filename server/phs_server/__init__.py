"""The gRPC embedding server: pixels and a mask in, PHS embedding and state out; and exact reranking."""

import os

# gRPC's core writes a line to stderr for calls of its own displeasure, which anybody can make.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Between two parallel steps the threads of libgomp, which torch computes with on a CPU, wait by spinning, for
# milliseconds. Where anything else wants a core, and be it the process that decodes, they spin it away: bulk encoding
# on two cores in use took three times as long (benchmarks/README.md). Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
