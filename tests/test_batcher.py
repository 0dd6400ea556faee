"""The batcher on plain Python functions: batching, bounds, deadlines, cancellation, failures, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from phs_server.batcher import Batcher, Closed, Expired, QueueFull

WAIT = 5.0


class Gate:
    """A run function that stands still until opened, and remembers its batches."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.set()
        assert self.open.wait(WAIT)
        if -1 in items:
            raise ValueError("minus one")
        return [item * 10 for item in items]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def make(gate: Gate, size: int = 4, delay_ms: float = 0, queue: int = 100) -> Batcher[int, int]:
    return Batcher(gate, max_batch_size=size, max_delay_ms=delay_ms, max_queue_size=queue)


def blocked(gate: Gate, batcher: Batcher[int, int]) -> None:
    """Occupies the worker, so that what follows queues up."""
    batcher.submit(0)
    assert gate.entered.wait(WAIT)


def test_queued_items_run_together_in_order(gate: Gate) -> None:
    batcher = make(gate)
    blocked(gate, batcher)
    futures = [batcher.submit(item) for item in range(1, 7)]
    gate.open.set()
    assert [future.result(WAIT).result for future in futures] == [10, 20, 30, 40, 50, 60]
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    batcher.close(WAIT)


def test_a_batch_waits_for_company_but_not_longer_than_told(gate: Gate) -> None:
    gate.open.set()
    batcher = make(gate, size=2, delay_ms=WAIT * 1000)
    futures = [batcher.submit(1), batcher.submit(2)]
    assert [future.result(WAIT / 2).result for future in futures] == [10, 20]
    assert gate.batches == [[1, 2]]
    batcher.close(WAIT)
    alone = make(gate, size=2, delay_ms=50)
    done = alone.submit(3).result(WAIT)
    assert done.queue_ms >= 45
    alone.close(WAIT)


def test_full_queue_answers_at_once(gate: Gate) -> None:
    batcher = make(gate, queue=2)
    blocked(gate, batcher)
    batcher.submit(1)
    batcher.submit(2)
    with pytest.raises(QueueFull, match="2 items"):
        batcher.submit(3)
    gate.open.set()
    batcher.close(WAIT)


def test_expired_and_cancelled_items_are_never_run(gate: Gate) -> None:
    batcher = make(gate)
    blocked(gate, batcher)
    expired = batcher.submit(1, deadline=time.monotonic() - 1)
    cancelled = batcher.submit(2)
    assert cancelled.cancel()
    kept = batcher.submit(3, deadline=time.monotonic() + 60)
    gate.open.set()
    assert kept.result(WAIT).result == 30
    with pytest.raises(Expired):
        expired.result(WAIT)
    with pytest.raises(CancelledError):
        cancelled.result(WAIT)
    assert gate.batches == [[0], [3]]
    batcher.close(WAIT)


def test_a_failing_batch_fails_its_own_items_only(gate: Gate) -> None:
    gate.open.set()
    batcher = make(gate, size=1)
    bad, good = batcher.submit(-1), batcher.submit(5)
    with pytest.raises(ValueError, match="minus one"):
        bad.result(WAIT)
    assert good.result(WAIT).result == 50
    assert batcher.alive
    batcher.close(WAIT)


def test_a_wrong_number_of_results_fails_the_batch() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: [], max_batch_size=1, max_delay_ms=0, max_queue_size=9)
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        batcher.submit(1).result(WAIT)
    batcher.close(WAIT)


def test_close_finishes_what_is_queued_and_takes_no_more(gate: Gate) -> None:
    batcher = make(gate)
    blocked(gate, batcher)
    future = batcher.submit(7)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    gate.open.set()
    closer.join(WAIT)
    assert future.result(0).result == 70
    assert not batcher.alive
    with pytest.raises(Closed):
        batcher.submit(8)


def test_close_with_a_stuck_batch_fails_the_rest(gate: Gate) -> None:
    batcher = make(gate)
    blocked(gate, batcher)
    waiting = batcher.submit(1)
    batcher.close(timeout=0.05)
    with pytest.raises(Closed):
        waiting.result(0)
