"""The bookkeeping of a bulk encode: which items are on their way, what to resend, what may be handed out.

Shared by the synchronous and the asynchronous client; does no I/O itself.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import DeadlineExceeded, InvalidInput, PhsError
from phs_milvus.contract.types import Encoding

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class Window:
    """The items of a bulk encode that were taken in and not yet handed out, at most `size` of them.

    Items are handed out in the order they were added, however the answers arrive, each exactly once: an answer to an
    item that is not waiting for one is ignored.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InvalidInput(f"is at least 1, got {size}", "in_flight")
        self._size = size
        self._next = 0
        self._repeats = 0
        self._items: OrderedDict[int, pb.EncodeStreamRequest | Encoding | PhsError] = OrderedDict()

    @property
    def full(self) -> bool:
        """Whether no further item may be added now."""
        return len(self._items) >= self._size

    @property
    def empty(self) -> bool:
        """Whether everything added was handed out."""
        return not self._items

    def add(self, request: pb.EncodeRequest) -> pb.EncodeStreamRequest:
        """Takes in an item; returns the message to send."""
        message = wire.stream_request(self._next, request)
        self._items[self._next] = message
        self._next += 1
        return message

    def add_failed(self, error: PhsError) -> None:
        """Takes in an item that failed before it could be sent."""
        self._items[self._next] = error
        self._next += 1

    def request(self, item: int) -> pb.EncodeRequest | None:
        """The request of an item that waits for its answer; None where it was answered already.

        Raises:
            InvalidInput: no such item was ever sent, or the answers only repeat what was answered.
        """
        if item >= self._next:
            raise InvalidInput(f"is {item}, but no such item was sent", "id")
        message = self._items.get(item)
        if isinstance(message, pb.EncodeStreamRequest):
            return message.request
        self._repeats += 1
        if self._repeats > self._size:  # otherwise a server that repeats one answer forever keeps the caller forever
            raise InvalidInput(f"is {item}, which was answered before, like {self._size} answers before it", "id")
        return None

    def answer(self, item: int, result: Encoding | PhsError) -> None:
        """Records the answer to an item; ignored where the item is not waiting for one."""
        if isinstance(self._items.get(item), pb.EncodeStreamRequest):
            self._items[item] = result
            self._repeats = 0

    def ready(self) -> Iterator[Encoding | PhsError]:
        """Hands out answered items, as far as the order allows."""
        while self._items:
            item, result = next(iter(self._items.items()))
            if isinstance(result, pb.EncodeStreamRequest):
                return
            del self._items[item]
            yield result

    def unanswered(self) -> list[pb.EncodeStreamRequest]:
        """What must be sent again when a stream breaks."""
        return [message for message in self._items.values() if isinstance(message, pb.EncodeStreamRequest)]


class RetryBudget:
    """How long to go on without progress: `timeout` seconds of waiting, with jittered, growing pauses between attempts.

    Only time inside `waiting()` counts: a caller may take as long as it likes over a result or over the next image.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self.progress()

    def progress(self) -> None:
        """An answer arrived: start over."""
        self._left = self._timeout
        self._attempts = 0
        self._error: PhsError | None = None

    @contextmanager
    def waiting(self) -> Iterator[float]:
        """Around a wait for the server; gives the seconds until budget runs out."""
        started = time.monotonic()
        try:
            yield max(0.0, self._left)
        finally:
            self._left -= time.monotonic() - started

    def timed_out(self, address: str) -> PhsError:
        """What to raise when budget runs out: why the stream broke last, or that nothing was answered."""
        return self._error or DeadlineExceeded(
            f"the embedding server at {address} answered none of the items in flight for {self._timeout:g} s"
        )

    def pause(self, error: PhsError) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            `error`: when budget has run out.
        """
        if self._left <= 0:
            raise error
        self._error = error
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._attempts, self._left)
        self._attempts += 1
        return ceiling * random.uniform(0.5, 1.0)
