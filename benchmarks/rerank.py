"""Reranking K stored states against re-encoding K images, and against the readout's bare matrix products.

    python -m benchmarks.rerank [--candidates 1000] [--queries 1 8] [--cpu-time]

Re-encoding is timed on one batch of 4 and scaled to K images for each query, since every query has head weights of
its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Clock, add_clock_flags, clock_name, dinov2, interleaved, print_table, set_clock
from phs_milvus.contract.types import RerankInputs
from phs_server.model import checkpoint
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine

_BATCH = 4


def bare_products(engine: FocusEngine, rows: int) -> Callable[[], None]:
    """W_o and the two MLP products on `rows` rows, nothing else, with plain torch at the engine's precision."""
    dtype, width = getattr(torch, engine.precision), engine.backbone.hidden_size
    x, hidden = (torch.randn(rows, size, device=engine.device, dtype=dtype) for size in (width, 4 * width))
    shapes = ((width, width), (width, 4 * width), (4 * width, width))
    weights = [torch.randn(shape, device=engine.device, dtype=dtype) for shape in shapes]

    @torch.inference_mode()
    def run() -> None:
        for source, weight in zip((x, x, hidden), weights, strict=True):
            source @ weight
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def compare(engine: FocusEngine, candidates: int, queries: int, seconds: float, clock: Clock) -> list[object]:
    """One row: milliseconds of a rerank, and its ratios."""
    rng = np.random.default_rng(0)
    width, heads = engine.backbone.hidden_size, engine.backbone.heads
    states = rng.standard_normal((candidates, 2, width)).astype(np.float16)
    embeddings = rng.standard_normal((queries, width)).astype(np.float32)
    weights = np.zeros((queries, heads), np.float32)
    for row in weights:
        row[rng.choice(heads, 5, replace=False)] = heads / 5
    inputs = RerankInputs(embeddings, weights, states)
    batch = engine.sample_batch(_BATCH)
    result = interleaved(
        {
            "rerank": lambda: engine.rerank(inputs),
            "products": bare_products(engine, candidates * queries),
            "encode": lambda: engine.encode(*batch),
        },
        seconds,
        clock,
    )
    # The ratios are speed relative to reranking: the inverse is how many times longer the other takes.
    encode_ratio = 1 / result["encode"][1] * queries * candidates / _BATCH
    return [engine.precision, queries, candidates, 1e3 * result["rerank"][0], encode_ratio, result["products"][1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--queries", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precision", nargs="+", default=["auto", "float32"])
    parser.add_argument("--device", default="auto")
    add_clock_flags(parser, seconds=10)
    arguments = parser.parse_args()
    clock = set_clock(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = dinov2("base", Path(folder))
        rows = []
        for precision in arguments.precision:
            engine = FocusEngine(checkpoint.load(str(model)), resolve_devices(arguments.device)[0], precision)
            rows += [
                compare(engine, arguments.candidates, count, arguments.seconds, clock) for count in arguments.queries
            ]
    header = ["precision", "Q", "K", "rerank, ms", "re-encoding K images per query / rerank", "rerank / bare products"]
    print_table(f"Rerank, D=768, H=12, {clock_name(arguments)}", header, rows)


if __name__ == "__main__":
    main()
