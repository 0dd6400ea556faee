"""A bounded queue that turns single items into batches. Knows neither torch nor gRPC.

Callers `submit` an item and get a future; one worker thread takes what is waiting, up to a full batch, and runs it.
Items whose deadline has passed or whose future was cancelled are dropped when a batch is formed. A batch that raises
fails its own futures and no other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFull(Exception):
    """The queue holds as many items as it may."""


class Expired(Exception):
    """The item's deadline passed before it was run."""


class Closed(Exception):
    """The batcher is shutting down."""


@dataclass(frozen=True)
class Completed(Generic[Result]):
    """An item's result, and the milliseconds it waited and its batch ran."""

    result: Result
    queue_ms: float
    compute_ms: float


@dataclass
class _Entry(Generic[Item, Result]):
    item: Item
    deadline: float | None
    submitted: float
    future: Future[Completed[Result]] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Collects items into batches for one worker thread.

    Args:
        run: called with 1 to max_batch_size items; returns one result each, in order.
        max_batch_size: items.
        max_delay_ms: how long the first item of a batch may wait for others, in milliseconds.
        max_queue_size: items waiting beyond which `submit` raises QueueFull.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch_size: int,
        max_delay_ms: float,
        max_queue_size: int,
        name: str = "batcher",
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_delay = max_delay_ms / 1000
        self._max_queue_size = max_queue_size
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name=name, daemon=True)
        self._worker.start()

    def submit(self, item: Item, deadline: float | None = None) -> Future[Completed[Result]]:
        """Queues an item.

        Args:
            deadline: time.monotonic() seconds after which the item is dropped with `Expired`.

        Raises:
            QueueFull, Closed: at once, without waiting.
        """
        entry: _Entry[Item, Result] = _Entry(item, deadline, time.monotonic())
        with self._changed:
            if self._closed:
                raise Closed("shutting down")
            if len(self._waiting) >= self._max_queue_size:
                raise QueueFull(f"the queue holds {self._max_queue_size} items, its limit")
            self._waiting.append(entry)
            self._changed.notify_all()
        return entry.future

    def close(self, timeout: float | None = None) -> None:
        """Takes no new items, finishes the queued ones, and waits for the worker up to `timeout` seconds.

        Items still queued after that fail with `Closed`.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join(timeout)
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(Closed("shut down before this item was run"))

    @property
    def alive(self) -> bool:
        """Whether the worker thread runs."""
        return self._worker.is_alive()

    @property
    def queue_depth(self) -> int:
        """Items waiting for a batch."""
        return len(self._waiting)

    def _work(self) -> None:
        while batch := self._next_batch():
            started = time.monotonic()
            try:
                results = self._run([entry.item for entry in batch])
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results for {len(batch)} items")
            except BaseException as error:
                for entry in batch:
                    entry.future.set_exception(error)
                continue
            compute_ms = (time.monotonic() - started) * 1000
            for entry, result in zip(batch, results, strict=True):
                queue_ms = (started - entry.submitted) * 1000
                entry.future.set_result(Completed(result, queue_ms, compute_ms))

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        """Waits for items; an empty list means closed and drained."""
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                self._wait_for_company()
                count = min(self._max_batch_size, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(count)]
            if batch := [entry for entry in taken if _still_wanted(entry)]:
                return batch

    def _wait_for_company(self) -> None:
        """Lets a batch fill until the first item has waited its share. Called with the lock held."""
        until = self._waiting[0].submitted + self._max_delay
        while len(self._waiting) < self._max_batch_size and not self._closed:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)


def _still_wanted(entry: _Entry) -> bool:
    if not entry.future.set_running_or_notify_cancel():
        return False
    if entry.deadline is not None and time.monotonic() > entry.deadline:
        entry.future.set_exception(Expired("the deadline passed while the item was queued"))
        return False
    return True
