"""Reads a feed ahead, on a thread or in a task: while it waits for its next item, as a queue does, results go on."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Given = TypeVar("Given")
Item = TypeVar("Item")

_END: Any = object()


def _nobody() -> None:
    """Who is told of an item as long as nobody asked to be."""


class ThreadReader(Iterator[Item], Generic[Given, Item]):
    """The items of an iterable, which a thread reads.

    Attributes:
        arrived: called, on the thread, when there is an item, or the end.

    Args:
        given: what to read.
        prepare: makes an item of each thing read, on the thread; None: it is skipped.
        places: items that are read at most before `release` says that one of them is finished.
    """

    def __init__(self, given: Iterable[Given], prepare: Callable[[Given], Item | None], places: int) -> None:
        self._given = given
        self._prepare = prepare
        self._places = threading.Semaphore(places)
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.arrived: Callable[[], None] = _nobody
        self._stopped, self._waiting = False, True
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="phs-feed", daemon=True)

    def ready(self) -> bool:
        """Whether `next` would return, or end, at once."""
        return not self._items.empty()

    def __next__(self) -> Item:
        if self._thread.ident is None:
            self._thread.start()
        item = self._items.get()
        if item is _END:
            raise StopIteration
        return item

    def release(self) -> None:
        """One more item may be read."""
        self._places.release()

    def stop(self) -> None:
        """Ends the items after those that were read by now. For any thread, and for signal handlers."""
        # In this order, and the thread's in the reverse one: an item whose reading has begun comes before the end.
        self._stopped = True
        if self._waiting:
            self._put(_END)

    def close(self) -> None:
        """Ends the thread, now or, while the iterable waits, when it gives its next thing, which is dropped."""
        self.stop()
        self.release()

    def raise_error(self) -> None:
        """Raises what the iterable raised, if it did."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            given = iter(self._given)
            while self._places.acquire() and not self._stopped:
                one = next(given, _END)
                self._waiting = False
                if one is _END or self._stopped:
                    break
                item = self._prepare(one)
                if item is None:
                    self.release()
                else:
                    self._put(item)
                self._waiting = True
        except BaseException as error:  # the caller's own, for the thread that takes the results
            self._error = error
        self._put(_END)

    def _put(self, item: Item) -> None:
        self._items.put(item)
        self.arrived()


class TaskReader(Iterator[Item], Generic[Given, Item]):
    """`ThreadReader` for asyncio: a task reads an async iterable. `prepare` is called on a thread.

    To be used on the event loop, but for `ready` and `next`, which never wait once `arrival` has returned.
    """

    def __init__(self, given: AsyncIterable[Given], prepare: Callable[[Given], Item | None], places: int) -> None:
        self._given = given
        self._prepare = prepare
        self._places = asyncio.Semaphore(places)
        self._items: deque[Item] = deque()
        self.arrived: Callable[[], None] = _nobody
        self._news = asyncio.Event()
        self._stopped = self._waiting = self._ended = False
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    def ready(self) -> bool:
        """Whether there is an item, or the end."""
        return bool(self._items) or self._ended

    async def arrival(self) -> None:
        """Waits for the next item, or for the end."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="phs-feed")
        while not self.ready():
            self._news.clear()
            await self._news.wait()

    def __next__(self) -> Item:
        if not self._items:
            raise StopIteration
        return self._items.popleft()

    def release(self) -> None:
        """One more item may be read."""
        self._places.release()

    def stop(self) -> None:
        """Ends the items after those that were read by now; what the iterable waits for is cancelled."""
        self._stopped = True
        if self._task is None or self._waiting:
            self._end()
        if self._task is not None and self._waiting:
            self._task.cancel()

    async def close(self) -> None:
        """Ends the task."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def raise_error(self) -> None:
        """Raises what the iterable raised, if it did."""
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        try:
            given = aiter(self._given)
            while not self._stopped:
                self._waiting = True
                await self._places.acquire()
                one = await anext(given, _END)
                self._waiting = False
                if one is _END:
                    break
                item = await asyncio.to_thread(self._prepare, one)
                if item is None:
                    self.release()
                else:
                    self._items.append(item)
                    self._tell()
        except Exception as error:  # the caller's own, for whoever takes the results
            self._error = error
        finally:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self.arrived()
