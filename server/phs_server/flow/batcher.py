"""Bounded queues that turn single items into batches. Knows neither torch nor gRPC.

Callers `submit` an item and get a future; worker threads take what is waiting, up to a full batch, and run it.
Interactive items overtake bulk items, but while both wait every sixteenth place goes to bulk, so neither starves. A
batch holds items of one key only. Items whose deadline has passed or whose future was cancelled are dropped when a
batch is formed. A batch that raises fails its own futures and no other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# While both priorities wait, one place in this many goes to bulk.
_BULK_TURN = 16


class Priority(IntEnum):
    """Someone waits for an INTERACTIVE item; BULK items are many, and only their total time counts."""

    INTERACTIVE = 0
    BULK = 1


class QueueFull(Exception):
    """The queue holds as many items, or bytes, as it may."""


class Expired(Exception):
    """The item's deadline passed before it was run."""


class Closed(Exception):
    """The batcher is shutting down."""


@dataclass(frozen=True)
class Completed(Generic[Result]):
    """An item's result, the milliseconds it waited and its batch ran, and how many items the batch held."""

    result: Result
    queue_ms: float
    compute_ms: float
    batch_size: int


@dataclass(eq=False)
class _Entry(Generic[Item, Result]):
    item: Item
    key: Hashable
    size: int
    deadline: float | None
    waits: bool
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Completed[Result]] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Collects items into batches for its worker threads.

    Args:
        *runs: one worker thread each. Called with 1 to max_batch_size items; returns one result each, in order.
        max_batch_size: items.
        max_delay_ms: how long the first item of a batch may wait for others, in milliseconds.
        max_queue_size: items waiting beyond which `submit` raises QueueFull.
        max_queue_bytes: the same for the sum of their sizes. A single item may be larger.
    """

    def __init__(
        self,
        *runs: Callable[[Sequence[Item]], Sequence[Result]],
        max_batch_size: int,
        max_delay_ms: float,
        max_queue_size: int,
        max_queue_bytes: int,
        name: str = "batcher",
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay_ms / 1000
        self._max_queue_size = max_queue_size
        self._max_queue_bytes = max_queue_bytes
        self._waiting: dict[Priority, deque[_Entry[Item, Result]]] = {priority: deque() for priority in Priority}
        self._bytes = 0
        self._turn = 0
        self._changed = threading.Condition()
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, args=(run,), name=f"{name}-{index}", daemon=True)
            for index, run in enumerate(runs)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self,
        item: Item,
        deadline: float | None = None,
        *,
        priority: Priority = Priority.INTERACTIVE,
        key: Hashable = None,
        size: int = 0,
        waits: bool = True,
    ) -> Future[Completed[Result]]:
        """Queues an item.

        Args:
            deadline: time.monotonic() seconds after which the item is dropped with `Expired`.
            key: only items of equal keys share a batch.
            size: bytes the item holds while it waits.
            waits: whether it may wait for others to fill its batch; False for one that costs less than the waiting.

        Raises:
            QueueFull, Closed: at once, without waiting.
        """
        entry: _Entry[Item, Result] = _Entry(item, key, size, deadline, waits)
        with self._changed:
            if self._closed:
                raise Closed("shutting down")
            if self._is_full(size):
                self.drop_unwanted()
            if self.depth >= self._max_queue_size:
                raise QueueFull(f"the queue holds {self._max_queue_size} items, its limit")
            if self._is_full(size):
                raise QueueFull(f"the queue holds {self._bytes} of at most {self._max_queue_bytes} bytes")
            self._waiting[priority].append(entry)
            self._bytes += size
            self._changed.notify_all()
        return entry.future

    def close(self, timeout: float | None = None) -> None:
        """Takes no new items, finishes the queued ones, and waits for the workers up to `timeout` seconds in all.

        Items still queued after that fail with `Closed`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = None if timeout is None else time.monotonic() + timeout
        for worker in self._workers:
            worker.join(None if until is None else max(0.0, until - time.monotonic()))
        with self._changed:
            left = [entry for queue in self._waiting.values() for entry in queue]
            for queue in self._waiting.values():
                queue.clear()
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(Closed("shut down before this item was run"))

    def drop_unwanted(self) -> None:
        """Forgets the waiting items whose deadline has passed or whose future was cancelled."""
        with self._changed:
            for priority, queue in self._waiting.items():
                self._waiting[priority] = deque(entry for entry in queue if not _unwanted(entry) or _start(entry))
            self._bytes = sum(entry.size for queue in self._waiting.values() for entry in queue)

    @property
    def alive(self) -> bool:
        """Whether every worker thread runs."""
        return all(worker.is_alive() for worker in self._workers)

    @property
    def depth(self) -> int:
        """Items waiting."""
        return sum(map(len, self._waiting.values()))

    def _is_full(self, size: int) -> bool:
        too_large = self._bytes > 0 and self._bytes + size > self._max_queue_bytes
        return too_large or self.depth >= self._max_queue_size

    def _work(self, run: Callable[[Sequence[Item]], Sequence[Result]]) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            outcome = _attempt(run, [entry.item for entry in batch])
            compute_ms = (time.monotonic() - started) * 1000
            for index, entry in enumerate(batch):
                if isinstance(outcome, BaseException):
                    entry.future.set_exception(outcome)
                else:
                    queue_ms = (started - entry.submitted) * 1000
                    entry.future.set_result(Completed(outcome[index], queue_ms, compute_ms, len(batch)))
            del batch, entry, outcome  # or this thread would hold them until there is more to do

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        """Waits for items; an empty list means closed and drained."""
        while True:
            with self._changed:
                while not self.depth and not self._closed:
                    self._changed.wait()
                if not self.depth:
                    return []
                self._wait_for_company()
                taken = self._take()
            if batch := [entry for entry in taken if _start(entry)]:
                return batch

    def _wait_for_company(self) -> None:
        """Lets a batch fill until the first item has waited its share. Called with the lock held."""
        firsts = [queue[0] for queue in self._waiting.values() if queue]
        until = min(first.submitted + self._max_delay * first.waits for first in firsts)
        while 0 < self.depth < self._max_batch_size and not self._closed:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> list[_Entry[Item, Result]]:
        """Removes the next batch, in the order of its places; empty if another worker was faster. Lock held."""
        taken: list[_Entry[Item, Result]] = []
        passed: dict[Priority, list[_Entry[Item, Result]]] = {priority: [] for priority in Priority}
        while len(taken) < self._max_batch_size and self.depth:
            self._turn += 1
            order = sorted(Priority, reverse=self._turn % _BULK_TURN == 0)
            priority = next(priority for priority in order if self._waiting[priority])
            entry = self._waiting[priority].popleft()
            if taken and entry.key != taken[0].key:
                passed[priority].append(entry)
                continue
            taken.append(entry)
            self._bytes -= entry.size
        for priority, entries in passed.items():
            self._waiting[priority].extendleft(reversed(entries))
        return taken


def _attempt(
    run: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item]
) -> Sequence[Result] | BaseException:
    """The results, or what was raised: by no frame that knows the futures which will hold it, for such a circle would
    keep the items until Python collects its oldest generation."""
    try:
        results = run(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")
    except BaseException as error:
        return error
    return results


def _unwanted(entry: _Entry) -> bool:
    return entry.future.cancelled() or (entry.deadline is not None and time.monotonic() > entry.deadline)


def _start(entry: _Entry) -> bool:
    """Whether an item should still run; settles its future if not."""
    expired = _unwanted(entry)
    if not entry.future.set_running_or_notify_cancel():
        return False
    if expired:
        entry.future.set_exception(Expired("the deadline passed while the item was queued"))
    return not expired
