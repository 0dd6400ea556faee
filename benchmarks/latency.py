"""Latency of single Encode calls, idle and while a bulk stream saturates the server.

    python -m benchmarks.latency [--size small] [--callers 1 8 64] [--seconds 15]
    python -m benchmarks.latency --queue-only

Each caller sends its next image when it has the last answer. The goal is p99 under load at most two batch times above
idle. With --queue-only the batches sleep instead of computing, so that what is seen is how the queue shares its places,
whatever else the processor does.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.common import dinov2, photos, print_table, server
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_server.flow import batcher


@contextmanager
def bulk_stream(address: str, files: list[bytes]) -> Iterator[None]:
    """Saturates the server from a thread with a connection of its own."""
    stop, running = threading.Event(), threading.Event()

    def work() -> None:
        endless = itertools.takewhile(lambda _: not stop.is_set(), itertools.cycle(files))
        with Encoder(address, timeout=300) as encoder:
            for _ in encoder.encode_many(endless, outputs=Outputs(state=True)):
                running.set()

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(address: str, files: list[bytes], callers: int, seconds: float) -> tuple[list[float], list[float]]:
    """(latencies, batch times) of all calls, in milliseconds, the first call of each caller left out."""
    end = time.perf_counter() + seconds

    def call(index: int) -> list[tuple[float, float]]:
        found = []
        with Encoder(address, timeout=300) as encoder:
            for image in itertools.cycle(files[index % len(files) :] + files):
                start = time.perf_counter()
                encoding = encoder.encode(image, outputs=Outputs(state=True, timings=True))
                found.append((1e3 * (time.perf_counter() - start), encoding.timings.compute_ms))
                if time.perf_counter() > end and len(found) > 3:
                    return found[1:]
        raise AssertionError("the cycle is endless")

    with ThreadPoolExecutor(callers) as pool:
        samples = [sample for part in pool.map(call, range(callers)) for sample in part]
    latencies, batches = zip(*samples, strict=True)
    return list(latencies), list(batches)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def queueing(turn: int, callers: int, batch: int, seconds: float) -> list[object]:
    """One row: callers of a Batcher that gives one place in `turn` to bulk, without and with bulk."""
    batch_seconds = 0.1
    batcher._BULK_TURN = turn
    found: list[float] = []
    for loaded in (False, True):
        queue = batcher.Batcher(
            lambda items: time.sleep(batch_seconds) or items,
            max_batch_size=batch,
            max_delay_ms=2,
            max_queue_size=1024,
            max_queue_bytes=2**30,
        )
        end, bulk_done = time.perf_counter() + seconds, 0

        def call(_: int, queue: batcher.Batcher = queue, end: float = end) -> list[float]:
            taken = []
            while (start := time.perf_counter()) < end:
                queue.submit(0).result()
                taken.append(1e3 * (time.perf_counter() - start))
            return taken[1:]

        with ThreadPoolExecutor(callers) as pool:
            calls = pool.map(call, range(callers))
            waiting: deque[Future] = deque()
            while loaded and time.perf_counter() < end:
                while len(waiting) < 64:
                    waiting.append(queue.submit(0, priority=batcher.Priority.BULK))
                waiting.popleft().result()
                bulk_done += 1
            found.append(quantile([each for some in calls for each in some], 0.99))
        queue.close(0)
    idle, saturated = found
    return [f"1 in {turn}", idle, saturated, (saturated - idle) / (1e3 * batch_seconds), bulk_done / seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("small", "base", "large", "giant"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=15, help="per row")
    parser.add_argument("--queue-only", action="store_true", help="batches that sleep, for several shares of bulk")
    arguments = parser.parse_args()
    if arguments.queue_only:
        rows = [queueing(turn, max(arguments.callers), arguments.batch, arguments.seconds) for turn in (4, 8, 16)]
        header = ["places of bulk", "idle p99, ms", "saturated p99, ms", "p99 over idle, batches", "bulk items/s"]
        print_table(f"{max(arguments.callers)} callers in batches of {arguments.batch} that sleep 100 ms", header, rows)
        return
    files = photos(16)
    rows = []
    idle: dict[int, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        server(dinov2(arguments.size, Path(folder)), "--max-batch-size", str(arguments.batch)) as (address, _),
    ):
        for loaded in (False, True):
            for callers in arguments.callers:
                with bulk_stream(address, files) if loaded else nullcontext():
                    start = time.perf_counter()
                    latencies, batches = measure(address, files, callers, arguments.seconds)
                    rate = len(latencies) / (time.perf_counter() - start)
                p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
                idle.setdefault(callers, p99)
                batch = statistics.median(batches)
                above = (p99 - idle[callers]) / batch if loaded else "-"
                rows.append(["saturated" if loaded else "idle", callers, len(latencies), rate, p50, p99, batch, above])
    header = ["server", "callers", "calls", "calls/s", "p50, ms", "p99, ms", "batch, ms", "p99 over idle, batches"]
    print_table(f"Interactive latency, DINOv2 {arguments.size}/14, batches of {arguments.batch}", header, rows)


if __name__ == "__main__":
    main()
