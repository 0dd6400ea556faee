"""What the server takes in at once, so that its memory is bounded whatever is sent.

Calls over a count are refused before their message is read. Unary calls over the bytes are refused, and streams wait,
before the last quarter is taken, which is for calls: a stream whose items are not read is stopped by HTTP/2 flow
control, in the client. Used on one event loop.

How large a message is shows only when it has been read, so requests hold at most
max_in_flight_bytes + (max_calls + max_streams) * max_message_bytes. Decoding adds a few copies of max_image_pixels
for each decode thread.
"""

from __future__ import annotations

import random
from asyncio import Future, get_running_loop
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from phs_milvus.contract.errors import EncoderBusy
from phs_server.config import Settings

# Of the bytes, in all and of a connection; beyond it streams wait, who would leave no room for calls.
_BULK_SHARE = 0.75
_SHORTEST_HINT, _LONGEST_HINT = 0.05, 5.0


class Admission:
    """Counts calls, streams, and the bytes of requests being worked on, in all and per connection.

    Attributes:
        calls, streams: in progress.
        bytes_held: of requests in progress.
        waiting: stream items that wait for room.
        busy: whether calls or stream items are in progress.
    """

    def __init__(self, settings: Settings) -> None:
        self.calls = 0
        self.streams = 0
        self._settings = settings
        self._held: Counter[str] = Counter()
        self.bytes_held = 0
        self._waiting: deque[tuple[str, int, Future[None]]] = deque()
        self._wait_seconds = 0.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self.calls or self.bytes_held)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around one unary call.

        Raises:
            EncoderBusy: as many calls as are allowed are in progress.
        """
        if self.calls >= self._settings.max_calls:
            raise EncoderBusy(f"{self.calls} calls are in progress, the limit; try again in a moment")
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Around one stream.

        Raises:
            EncoderBusy: as many streams as are allowed are open.
        """
        if self.streams >= self._settings.max_streams:
            raise EncoderBusy(f"{self.streams} streams are open, the limit; try again in a moment")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    @contextmanager
    def holding(self, peer: str, size: int) -> Iterator[None]:
        """Around the work on a request of `size` bytes of the connection `peer`.

        Raises:
            EncoderBusy: it does not fit beside what is in progress.
        """
        if not self._fits(peer, size):
            raise EncoderBusy(f"{self.bytes_held} bytes of requests are in progress; try again in a moment")
        self._take(peer, size)
        try:
            yield
        finally:
            self.release(peer, size)

    async def wait(self, peer: str, size: int) -> None:
        """Takes `size` bytes as soon as they fit, first come, first served, but past those that wait for room in their
        own connection; give them back with `release`."""
        if not self._waiting and self._fits(peer, size, _BULK_SHARE):
            self._take(peer, size)
            return
        turn: Future[None] = get_running_loop().create_future()
        self._waiting.append((peer, size, turn))
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(peer, size)
            raise

    def release(self, peer: str, size: int) -> None:
        """Gives bytes back, and lets in who now fits."""
        self.bytes_held -= size
        self._held[peer] -= size
        if not self._held[peer]:
            del self._held[peer]
        still: deque[tuple[str, int, Future[None]]] = deque()
        while self._waiting:
            waiting_peer, waiting_size, turn = entry = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if not self._connection_has_room(waiting_peer, waiting_size, _BULK_SHARE):
                still.append(entry)
            elif self._total_has_room(waiting_size, _BULK_SHARE):
                self._take(waiting_peer, waiting_size)
                turn.set_result(None)
            else:
                still.append(entry)
                break  # nobody overtakes: a large request would never get its turn among small ones
        self._waiting.extendleft(reversed(still))

    def observe_wait(self, seconds: float) -> None:
        """How long an item took from being queued to being done, for the hint."""
        self._wait_seconds += 0.1 * (seconds - self._wait_seconds)

    @property
    def retry_hint_ms(self) -> int:
        """When to try again: about what items wait now, spread so that refused callers do not return together."""
        seconds = min(max(self._wait_seconds, _SHORTEST_HINT), _LONGEST_HINT)
        return round(1000 * seconds * random.uniform(0.75, 1.25))

    def _fits(self, peer: str, size: int, share: float = 1.0) -> bool:
        return self._total_has_room(size, share) and self._connection_has_room(peer, size, share)

    def _total_has_room(self, size: int, share: float) -> bool:
        """A request larger than the limit has room where nothing else is in progress; max_message_bytes bounds it."""
        return not self.bytes_held or self.bytes_held + size <= share * self._settings.max_in_flight_bytes

    def _connection_has_room(self, peer: str, size: int, share: float) -> bool:
        held = self._held.get(peer, 0)
        return not held or held + size <= share * self._settings.max_connection_bytes

    def _take(self, peer: str, size: int) -> None:
        self.bytes_held += size
        self._held[peer] += size
