"""Scanning a file of states against the readout's bare matrix products over as many rows.

    python -m benchmarks.scan [--rows 100000] [--weights 1 2] [--cpu-time]

D = 768, with random weights and states, whose values do not matter. Everything but gRPC: mapping, dequantising, reading
out, cosines and keeping the best. Two distinct head weights are what a blend needs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.common import Clock, add_clock_flags, clock_name, dinov2, interleaved, print_table, set_clock
from benchmarks.rerank import bare_products
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.scanning import ScanInputs
from phs_milvus.contract.states_file import StatesHeader
from phs_milvus.contract.types import ModelInfo
from phs_server.config import Settings
from phs_server.flow.describe import describe
from phs_server.flow.scanning import Scan
from phs_server.flow.states_file import StatesFile
from phs_server.model import checkpoint
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine

# Rows of a product that is compared with, as many as one step of a readout has, and of a batch of the file.
_PRODUCT, _BATCH = 2048, 8192


def write(path: Path, info: ModelInfo, rows: int) -> None:
    """A file of so many states; the same batch again and again."""
    header = StatesHeader("random", datetime.now(timezone.utc), info.fingerprint, info.model_id, info.hidden_size)
    schema = header.schema(text_keys=True)
    rng = np.random.default_rng(0)
    some = Int8States.of(rng.standard_normal((_BATCH, 2, info.hidden_size)).astype(np.float16))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, rows, _BATCH):
            count = min(_BATCH, rows - start)
            tensors = [pa.FixedShapeTensorArray.from_numpy_ndarray(part[:count]) for part in (some.scales, some.values)]
            keys = pa.array([f"{row:09d}.jpg" for row in range(start, start + count)])
            writer.write_batch(pa.record_batch([keys, *tensors], schema=schema))


def scanning(engine: FocusEngine, file: StatesFile, weights: int) -> Callable[[], None]:
    """A whole scan with so many distinct head weights, for the best 100 keys by their sum."""
    rng = np.random.default_rng(1)
    heads = np.zeros((weights, engine.backbone.heads), np.float32)
    for row in heads:
        row[rng.choice(engine.backbone.heads, 5, replace=False)] = engine.backbone.heads / 5
    embeddings = rng.standard_normal((weights, engine.backbone.hidden_size)).astype(np.float32)
    inputs = ScanInputs(embeddings, heads, 100, None, np.full((1, weights), 1 / weights, np.float32))
    held = engine.hold(file.parts)

    def run() -> None:
        scan = Scan(file, inputs, 2**26)
        while not scan.done:
            scan.step(engine, held, lambda: None)
        scan.result()

    return run


def repeated(products: Callable[[], None], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            products()

    return run


def compare(engine: FocusEngine, file: StatesFile, weights: int, seconds: float, clock: Clock) -> list[object]:
    """One row: milliseconds of a scan for 100,000 states, and its ratio."""
    products = repeated(bare_products(engine, _PRODUCT), weights * len(file) // _PRODUCT)
    result = interleaved({"scan": scanning(engine, file, weights), "products": products}, seconds, clock)
    share = len(file) / (len(file) // _PRODUCT * _PRODUCT)
    milliseconds = 1e3 * result["scan"][0] * 100_000 / len(file)
    return [engine.precision, weights, len(file), milliseconds, result["products"][1] / share]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--weights", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--precision", nargs="+", default=["auto", "float32"])
    parser.add_argument("--device", default="auto")
    add_clock_flags(parser, seconds=10)
    arguments = parser.parse_args()
    clock = set_clock(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model, path = dinov2("base", Path(folder)), Path(folder) / "random.states"
        rows = []
        for precision in arguments.precision:
            loaded = checkpoint.load(str(model))
            engine = FocusEngine(loaded, resolve_devices(arguments.device)[0], precision)
            info = describe(loaded, engine, Settings())
            if not path.exists():
                write(path, info, arguments.rows)
            file = StatesFile(str(path), info)
            rows += [compare(engine, file, count, arguments.seconds, clock) for count in arguments.weights]
    header = ["precision", "distinct weights", "rows", "ms per 100,000 states", "scan / bare products"]
    print_table(f"Scan, D=768, H=12, {torch.get_num_threads()} threads, {clock_name(arguments)}", header, rows)


if __name__ == "__main__":
    main()
