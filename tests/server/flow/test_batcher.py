"""The batcher on plain Python functions: batching, bounds, deadlines, cancellation, failures, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from phs_server.flow.batcher import Batcher, Closed, Expired, Priority, QueueFull

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


def make(
    *runs: Gate, size: int = 4, delay_ms: float = 0, queue: int = 100, queue_bytes: int = 10**9
) -> Batcher[int, int]:
    return Batcher(*runs, max_batch_size=size, max_delay_ms=delay_ms, max_queue_size=queue, max_queue_bytes=queue_bytes)


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
    batcher: Batcher[int, int] = Batcher(
        lambda items: [], max_batch_size=1, max_delay_ms=0, max_queue_size=9, max_queue_bytes=9
    )
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


def test_interactive_items_overtake_bulk_and_bulk_keeps_every_sixteenth_place(gate: Gate) -> None:
    batcher = make(gate, size=8)
    blocked(gate, batcher)
    bulk = [batcher.submit(100 + item, priority=Priority.BULK) for item in range(6)]
    interactive = [batcher.submit(item) for item in range(1, 31)]
    gate.open.set()
    for future in (*bulk, *interactive):
        future.result(WAIT)
    # The blocked item took the first place of the first sixteen.
    assert gate.batches[1:] == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [9, 10, 11, 12, 13, 14, 100, 15],
        [16, 17, 18, 19, 20, 21, 22, 23],
        [24, 25, 26, 27, 28, 29, 101, 30],
        [102, 103, 104, 105],
    ]
    batcher.close(WAIT)


def test_bulk_does_not_starve_at_batch_size_one(gate: Gate) -> None:
    batcher = make(gate, size=1)
    blocked(gate, batcher)
    futures = [batcher.submit(item) for item in range(1, 21)] + [batcher.submit(100, priority=Priority.BULK)]
    gate.open.set()
    for future in futures:
        future.result(WAIT)
    assert gate.batches.index([100]) == 15
    batcher.close(WAIT)


def test_a_batch_holds_one_key_and_passed_items_keep_their_order(gate: Gate) -> None:
    batcher = make(gate, size=3)
    blocked(gate, batcher)
    keys = {1: "a", 2: "b", 3: "a", 4: "b", 5: "a", 6: "a"}
    futures = [batcher.submit(item, key=key) for item, key in keys.items()]
    gate.open.set()
    for future in futures:
        future.result(WAIT)
    assert gate.batches[1:] == [[1, 3, 5], [2, 4], [6]]
    batcher.close(WAIT)


def test_the_queue_is_bounded_in_bytes_but_takes_one_item_of_any_size(gate: Gate) -> None:
    batcher = make(gate, queue_bytes=100)
    blocked(gate, batcher)
    large = batcher.submit(1, size=1000)
    with pytest.raises(QueueFull, match="1000 of at most 100 bytes"):
        batcher.submit(2, size=1)
    gate.open.set()
    assert large.result(WAIT).result == 10
    assert batcher.submit(3, size=100).result(WAIT).result == 30
    batcher.close(WAIT)


def test_a_full_queue_makes_room_by_dropping_what_nobody_waits_for(gate: Gate) -> None:
    batcher = make(gate, queue=2)
    blocked(gate, batcher)
    expired = batcher.submit(1, deadline=time.monotonic() - 1, size=5)
    assert batcher.submit(2).cancel()
    kept = [batcher.submit(3), batcher.submit(4)]
    with pytest.raises(Expired):
        expired.result(0)
    with pytest.raises(QueueFull):
        batcher.submit(5)
    gate.open.set()
    assert [future.result(WAIT).result for future in kept] == [30, 40]
    assert gate.batches == [[0], [3, 4]]
    batcher.close(WAIT)


def test_workers_share_one_queue() -> None:
    gates = Gate(), Gate()
    batcher = make(*gates, size=1)
    futures = [batcher.submit(1), batcher.submit(2)]
    for gate in gates:  # all before any is opened: a free worker would take the other's item
        assert gate.entered.wait(WAIT)
    for gate in gates:
        gate.open.set()
    assert sorted(future.result(WAIT).result for future in futures) == [10, 20]
    assert batcher.depth == 0
    batcher.close(WAIT)
    assert not batcher.alive


def test_what_nobody_waits_for_leaves_the_queue_when_told(gate: Gate) -> None:
    batcher = make(gate, queue_bytes=100)
    blocked(gate, batcher)
    gone, late, kept = (batcher.submit(1, size=40), batcher.submit(2, time.monotonic(), size=40), batcher.submit(3))
    gone.cancel()
    time.sleep(0.01)
    batcher.drop_unwanted()
    assert batcher.depth == 1
    with pytest.raises(Expired):
        late.result(0)
    batcher.submit(4, size=100)  # their bytes are free again
    gate.open.set()
    assert kept.result(WAIT).result == 30
    batcher.close(WAIT)
