"""What a collection costs Milvus: `python -m benchmarks.capacity --milvus URI [--rows N] [--index HNSW]`.

Synthetic rows go through FocusedCollection as those of an ingest do. Measured are rows per second of each stage, memory
and disk of the server process, which has to be the only one named milvus here (tests/milvus_standalone.sh), recall
against exact search, and the latency of a search with its states at 1 and 8 callers. At the end the same for states
beside somebody else's rows. Memory is that of the loaded collection over that of the same process after its release.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pymilvus import MilvusClient
from tabulate import tabulate

from benchmarks.attach import make_foreign
from benchmarks.milvus_process import Peak, Server
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.types import Limits, ModelInfo
from phs_milvus.milvus.collection import Candidates, FocusedCollection, Row, close, connect
from phs_milvus.milvus.side import NewState

BATCH = 1000
EXACT = 200  # nearest rows that recall is counted on
INTRINSIC = 48  # dimensions that the synthetic embeddings vary in, beside noise
SETTLE_S = 15  # after a load or a release the server's allocators give memory back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--milvus", required=True, help="a server on this machine that holds nothing else")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--index", default="HNSW", help="one that needs no search parameters but ef")
    parser.add_argument("--state-format", choices=("int8", "float16"), default="int8")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--side-rows", type=int, default=50_000, help="states beside rows; 0: leave that out")
    options = parser.parse_args()
    client = connect(options.milvus)
    try:
        measure_rows(client, options)
        if options.side_rows:
            measure_side(client, options)
    finally:
        for name in ("bench_capacity", "bench_foreign", "bench_foreign_phs"):
            client.drop_collection(name)
        close(client)


def measure_rows(client: MilvusClient, options: argparse.Namespace) -> None:
    """Prints what `options.rows` rows with their states cost."""
    count, size = options.rows, options.hidden_size
    server = Server()
    empty = server.memory()
    collection = FocusedCollection.create(
        client,
        "bench_capacity",
        model_of(size),
        index_type=options.index,
        state_format=options.state_format,
        overwrite=True,
    )
    queries = next(embeddings(1, size, seed=1, batch=options.queries))
    exact = Exact(queries)
    inserting, indexed = 0.0, 0
    with Peak(server) as peak:
        for start, (vectors, states) in enumerate(zip(embeddings(count, size), states_of(count, size), strict=True)):
            rows = [
                Row(key, vector, state, digest)
                for key, digest, vector, state in zip(*names(start * BATCH, len(vectors)), vectors, states, strict=True)
            ]
            inserting += seconds(lambda rows=rows: collection.insert(rows))
            exact.add(vectors)
        tell("insert", count, inserting)
        indexed = indexed_rows(client, "bench_capacity")
        flushing = seconds(collection.flush)
        indexing = seconds(lambda: wait_for_index(client, "bench_capacity", count))
        print(f"flush {flushing:.1f} s; then {count - indexed:,} rows were left to index: {indexing:.1f} s")
        client.release_collection("bench_capacity")
        compacting = seconds(lambda: compact(client, "bench_capacity", server))
        print(f"segments merged and indexed again: {compacting:.1f} s")
        loading = seconds(lambda: client.load_collection("bench_capacity"))
        tell("load", count, loading)
    time.sleep(SETTLE_S)
    loaded = server.memory()
    print_searches(collection, queries, exact)
    client.release_collection("bench_capacity")
    time.sleep(SETTLE_S)
    released = server.memory()
    print(f"memory, MiB (anonymous, files): empty {empty}, loaded {loaded}, released {released}, peak {peak.highest}")
    print(f"bytes a row in memory, loaded over released: {loaded.over(released, count)}")
    print(f"bytes a row on disk: {server.disk(count)}")
    text = state_codec.text_length(size, options.state_format)
    print(f"formula: embedding {4 * size}, state {text}, digest 64, id {len(names(0, 1)[0][0])}")


def measure_side(client: MilvusClient, options: argparse.Namespace) -> None:
    """Prints what `options.side_rows` states beside somebody else's rows cost."""
    count, size = options.side_rows, options.hidden_size
    server = Server()
    make_foreign(client, next(embeddings(1, size)))
    side = FocusedCollection.attach(client, "bench_foreign", model=model_of(size)).side
    assert side is not None
    writing, key = 0.0, 0
    for vectors, states in zip(embeddings(count, size), states_of(count, size), strict=True):
        news = [
            NewState(key + row, state, vector, "f" * 64)
            for row, (vector, state) in enumerate(zip(vectors, states, strict=True))
        ]
        key += len(news)
        writing += seconds(lambda news=news: side.write(news))
    writing += seconds(side.flush)
    tell("states beside rows", count, writing)
    client.release_collection(side.name)
    server.wait_until_idle()
    client.load_collection(side.name)
    time.sleep(SETTLE_S)
    loaded = server.memory()
    client.release_collection(side.name)
    time.sleep(SETTLE_S)
    released = server.memory()
    print(f"memory, MiB: loaded {loaded}, released {released}; bytes a row: {loaded.over(released, count)}")


def print_searches(collection: FocusedCollection, queries: np.ndarray, exact: Exact) -> None:
    """Recall, and latency by number of rows asked for and callers."""

    def search(query: np.ndarray, limit: int, with_states: bool = False) -> Candidates:
        return collection.search(query[None], limit, with_states=with_states)[0]

    shares = {limit: exact.recall(queries, limit, search) for limit in (10, EXACT)}
    print("recall against exact: " + ", ".join(f"{share:.4f} @{limit}" for limit, share in shares.items()))
    table = []
    for limit, with_states in ((10, False), (200, True), (1000, True)):

        def ask(query: np.ndarray, limit: int = limit, with_states: bool = with_states) -> float:
            return 1000 * seconds(lambda: search(query, limit, with_states))

        for callers in (1, 8):
            started = time.perf_counter()
            with ThreadPoolExecutor(callers) as pool:
                taken = list(pool.map(ask, queries))
            rate = len(queries) / (time.perf_counter() - started)
            table.append([limit, with_states, callers, *np.percentile(taken, (50, 95)), rate])
    head = ["rows", "states", "callers", "p50 ms", "p95 ms", "searches/s"]
    print(tabulate(table, head, "github", floatfmt=".1f"))
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


class Exact:
    """The nearest rows by exact search, found batch by batch."""

    def __init__(self, queries: np.ndarray) -> None:
        self._queries = queries
        self._scores = np.full((len(queries), EXACT), -2, np.float32)
        self._rows = np.full((len(queries), EXACT), -1)
        self._seen = 0

    def add(self, vectors: np.ndarray) -> None:
        """Takes the next rows, float32 [B, D]."""
        rows = np.broadcast_to(self._seen + np.arange(len(vectors)), (len(self._queries), len(vectors)))
        scores = np.hstack([self._scores, self._queries @ vectors.T])
        best = np.argsort(-scores, axis=1)[:, :EXACT]
        self._scores = np.take_along_axis(scores, best, 1)
        self._rows = np.take_along_axis(np.hstack([self._rows, rows]), best, 1)
        self._seen += len(vectors)

    def recall(self, queries: np.ndarray, limit: int, search: Callable[[np.ndarray, int], Candidates]) -> float:
        """The share of the `limit` nearest rows that a search finds, over all queries."""
        shares = []
        for query, rows in zip(queries, self._rows[:, :limit], strict=True):
            wanted = {name(row) for row in rows}
            shares.append(len(wanted & set(search(query, limit).ids)) / limit)
        return float(np.mean(shares))


def model_of(size: int) -> ModelInfo:
    return ModelInfo("bench", "vit", "f" * 64, 6, size, size, 14, 14, 224, 1, "float32", Limits())


def embeddings(count: int, size: int, seed: int = 0, batch: int = BATCH) -> Iterator[np.ndarray]:
    """Batches of float32 [B, D] of norm 1, around 1,000 centres in a space of `INTRINSIC` dimensions, with noise."""
    shape = np.random.default_rng(7)
    basis = shape.normal(size=(INTRINSIC, size)).astype(np.float32)
    centres = shape.normal(size=(1000, INTRINSIC)).astype(np.float32)
    rng = np.random.default_rng(seed)
    for _ in range(0, count, batch):
        latent = centres[rng.integers(len(centres), size=batch)] + 0.7 * rng.standard_normal(
            (batch, INTRINSIC), np.float32
        )
        vectors = latent @ basis + rng.standard_normal((batch, size), np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def states_of(count: int, size: int) -> Iterator[np.ndarray]:
    """Batches of float16 [B, 2, D]."""
    rng = np.random.default_rng(2)
    for _ in range(0, count, BATCH):
        yield rng.standard_normal((BATCH, 2, size), np.float32).astype(np.float16)


def name(row: int) -> str:
    """A path of the usual length."""
    return f"photos/{row:09d}.jpg"


def names(start: int, count: int) -> tuple[list[str], list[str]]:
    """The ids and digests of rows."""
    ids = [name(row) for row in range(start, start + count)]
    return ids, [hashlib.sha256(one.encode()).hexdigest() for one in ids]


def indexed_rows(client: MilvusClient, collection: str) -> int:
    """Rows in segments that have their index."""
    about = client.describe_index(collection, client.list_indexes(collection)[0])
    return int(about["indexed_rows"])


def wait_for_index(client: MilvusClient, collection: str, count: int) -> None:
    """Until all rows are indexed."""
    while indexed_rows(client, collection) < count:
        time.sleep(0.5)


def compact(client: MilvusClient, collection: str, server: Server) -> None:
    """Merges segments, which Milvus would do at some time, and waits until the server has nothing left to do.

    Meanwhile it holds rows twice.
    """
    job = client.compact(collection)
    while client.get_compaction_state(job) == "Executing":
        time.sleep(0.5)
    server.wait_until_idle()


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def tell(stage: str, count: int, taken: float) -> None:
    print(f"{stage}: {count:,} rows in {taken:.1f} s, {count / taken:,.0f} rows/s", flush=True)


if __name__ == "__main__":
    main()
