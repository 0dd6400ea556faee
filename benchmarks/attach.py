"""What it costs that an attached collection's states are beside it: `python -m benchmarks.attach [--milvus URI]`.

Three collections of the same random rows: one of our own with states in its rows, and somebody else's whose states are
in a side collection. Measured are states written per second, and searches for 500 candidates with their states, each
for another query, in turns: out of the rows; out of the side collection; and out of the side collection for a query
asked before, whose states are still in memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient
from tabulate import tabulate

from phs_milvus.contract.types import Limits, ModelInfo
from phs_milvus.milvus.collection import FocusedCollection, Row, close, connect
from phs_milvus.milvus.side import NewState

CANDIDATES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milvus", help="a server; without one, Milvus Lite in a temporary folder")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--queries", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        client = connect(options.milvus or str(Path(folder) / "attach.db"))
        try:
            print(measured(client, options.rows, options.hidden_size, options.queries))
        finally:
            for name in ("bench_own", "bench_foreign", "bench_foreign_phs"):
                client.drop_collection(name)
            close(client)


def measured(client: MilvusClient, count: int, size: int, queries: int) -> str:
    info = ModelInfo("bench", "vit", "f" * 64, 6, size, size, 14, 14, 224, 1, "float32", Limits())
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(count, size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    states = rng.normal(size=(count, 2, size)).astype(np.float16)

    own = FocusedCollection.create(client, "bench_own", info, overwrite=True)
    started = time.perf_counter()
    own.insert([Row(f"{key:06d}", embeddings[key], states[key]) for key in range(count)])
    own.flush()
    own_seconds = time.perf_counter() - started

    make_foreign(client, embeddings)
    foreign = FocusedCollection.attach(client, "bench_foreign", model=info)
    ids = list(foreign.iterate_ids())
    started = time.perf_counter()
    for start in range(0, count, 256):
        part = range(start, min(count, start + 256))
        foreign.side.write([NewState(ids[key], states[key], embeddings[key], "") for key in part])
    foreign.side.flush()
    side_seconds = time.perf_counter() - started

    asked = rng.normal(size=(queries, size)).astype(np.float32)
    ways = {
        "states in the rows": lambda query: own.search(query, CANDIDATES, with_states=True),
        "without states": lambda query: own.search(query, CANDIDATES),
        "states beside": lambda query: foreign.search(query, CANDIDATES, with_states=True),
        "states beside, asked before": lambda query: foreign.search(query, CANDIDATES, with_states=True),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for query in asked:
        for way, search in ways.items():
            started = time.perf_counter()
            (found,) = search(query[None])
            times[way].append(1000 * (time.perf_counter() - started))
            assert len(found) == CANDIDATES
            assert way == "without states" or all(found.states)
    rows = [[way, *(f"{np.percentile(values, share):.1f}" for share in (50, 95))] for way, values in times.items()]
    written = (
        f"{count / own_seconds:,.0f} rows/s whole, {count / side_seconds:,.0f} states/s beside rows that are there"
    )
    return f"{count:,} rows, D={size}: {written}\n" + tabulate(rows, ["500 candidates", "p50 ms", "p95 ms"], "github")


def make_foreign(client: MilvusClient, embeddings: np.ndarray) -> None:
    schema = client.create_schema(auto_id=True)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=embeddings.shape[1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="AUTOINDEX", metric_type="COSINE")
    client.create_collection("bench_foreign", schema=schema, index_params=index)
    for start in range(0, len(embeddings), 500):
        client.insert("bench_foreign", [{"vector": vector} for vector in embeddings[start : start + 500]])
    client.flush("bench_foreign")


if __name__ == "__main__":
    main()
