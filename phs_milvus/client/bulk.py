"""The bookkeeping of a stream of images: which items await an answer, what to resend, and which results come next.

`Encoder` and `AsyncEncoder` share it; it does no I/O itself.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from phs_milvus.contract.errors import DeadlineExceeded, InvalidInput, PhsError

Result = TypeVar("Result")


class Window(Generic[Result]):
    """The images in progress of a stream: items that were added and not yet handed out, at most `size` of them.

    Each item is handed out exactly once, with the key that it was added with: a second answer to it is ignored.

    Args:
        ordered: whether items are handed out in the order in which they were added, whatever the order of the answers;
            False: in the order of the answers.
    """

    def __init__(self, size: int, *, ordered: bool = True) -> None:
        if size < 1:
            raise InvalidInput(f"is at least 1, got {size}", "in_flight")
        self.size = size
        self._ordered = ordered
        self._next = 0
        self._repeats = 0
        self._items: OrderedDict[int, Message | Result | PhsError] = OrderedDict()
        self._keys: dict[int, Any] = {}

    @property
    def full(self) -> bool:
        """Whether there is no room for another item now."""
        return len(self._items) >= self.size

    @property
    def empty(self) -> bool:
        """Whether every item was handed out."""
        return not self._items

    def add(self, key: Any, message_of: Callable[[int], Message]) -> Message:
        """Adds an item and returns the message to send, which is made for the item's id."""
        message = message_of(self._next)
        self._items[self._next], self._keys[self._next] = message, key
        self._next += 1
        return message

    def add_failed(self, key: Any, error: PhsError) -> None:
        """Adds an item that failed before it could be sent."""
        self._keys[self._next] = key
        self._finish(self._next, error)
        self._next += 1

    def message(self, item: int) -> Message | None:
        """The message of an item that awaits its answer; None where the item was answered already.

        Raises:
            InvalidInput: no such item was ever sent, or more answers in a row than the window's size were repeats.
        """
        if item >= self._next:
            raise InvalidInput(f"is {item}, but no such item was sent", "id")
        message = self._items.get(item)
        if isinstance(message, Message):
            return message
        self._repeats += 1
        if self._repeats > self.size:  # otherwise a server that repeats one answer forever keeps the caller forever
            raise InvalidInput(f"is {item}, which was answered before, like {self.size} answers before it", "id")
        return None

    def answer(self, item: int, result: Result | PhsError) -> None:
        """Records the answer to an item; does nothing where the item was answered already."""
        if isinstance(self._items.get(item), Message):
            self._finish(item, result)
            self._repeats = 0

    def ready(self) -> Iterator[tuple[Any, Result | PhsError]]:
        """Hands out (key, result) of each item up to the first one that awaits its answer."""
        while self._items:
            item, result = next(iter(self._items.items()))
            if isinstance(result, Message):
                return
            del self._items[item]
            yield self._keys.pop(item), result

    def unanswered(self) -> list[Message]:
        """The messages to send again after a stream broke."""
        return [message for message in self._items.values() if isinstance(message, Message)]

    def unanswered_keys(self) -> list[Any]:
        """The keys of the items that await their answers."""
        return [self._keys[item] for item, message in self._items.items() if isinstance(message, Message)]

    def _finish(self, item: int, result: Result | PhsError) -> None:
        self._items[item] = result
        if not self._ordered:
            self._items.move_to_end(item, last=False)  # before all that await their answers


class RetryBudget:
    """How long a bulk encode goes on without an answer: `timeout` seconds.

    Only time inside `waiting()` counts, so the caller may spend any time on a result or on the next image.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.progress()

    def progress(self) -> None:
        """Starts over, because an answer arrived."""
        self._left = self._timeout
        self._error: PhsError | None = None

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Counts the time inside the `with` block, and yields the seconds that are left of the budget."""
        started = time.monotonic()
        try:
            yield max(0.0, self._left)
        finally:
            self._left -= time.monotonic() - started

    def timed_out(self, address: str) -> PhsError:
        """The error to raise when the budget is spent: why the stream last broke, or that nothing was answered."""
        return self._error or DeadlineExceeded(
            f"the embedding server at {address} answered none of the items in flight for {self._timeout:g} s"
        )

    def broke(self, error: PhsError) -> None:
        """A stream broke, and is opened again as long as the budget lasts.

        Raises:
            `error`: the budget is spent.
        """
        if self._left <= 0:
            raise error
        self._error = error
