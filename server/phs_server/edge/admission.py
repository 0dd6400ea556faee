"""What the server takes in at once, so that its memory is bounded whatever is sent: the one admission of all calls.

    places   calls, bulk streams and probes in progress, counted before a message is read (phs_server.edge.places)
    room     images and bytes: what the requests and answers in progress really hold

Unary calls without room are refused. Stream items wait for it, and never hold the last quarter, which is for calls: a
stream whose items are not read is stopped by HTTP/2 flow control, in the client. What becomes free goes to stream items
that wait until they hold their share, so that neither kind can starve the other. Used on one event loop.
"""

from __future__ import annotations

import random
from asyncio import CancelledError, Future, get_running_loop
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from phs_milvus.contract.errors import EncoderBusy
from phs_server.config import Settings
from phs_server.edge.callers import Caller
from phs_server.edge.places import Places

# Of the images and the bytes, and of one caller's bytes: beyond it stream items wait.
_BULK_SHARE = 0.75
_SHORTEST_HINT, _LONGEST_HINT = 0.05, 5.0


@dataclass(eq=False)
class Hold:
    """What one request holds: bytes, of message and answer together, and a place among the images."""

    caller: Caller
    size: int
    images: int
    bulk: bool


class Admission:
    """Counts calls, streams, probes, and the images and bytes of requests in progress, in all and per caller.

    Attributes:
        calls, streams, probes: places.
        images, bytes_held: of requests in progress.

    Args:
        close: ends a connection, given gRPC's name of its peer.
    """

    def __init__(self, settings: Settings, close: Callable[[str], object] = lambda peer: None) -> None:
        self.calls = Places(settings.max_calls, "calls", close)
        self.streams = Places(settings.max_streams, "streams", close)
        self.probes = Places(settings.max_probes, "probes", close)
        self.images = 0
        self.bytes_held = 0
        self._settings = settings
        self._holds: set[Hold] = set()
        self._of_caller: Counter[str] = Counter()
        self._bulk_images = 0
        self._bulk_bytes = 0
        self._waiting: deque[tuple[Hold, Future[None]]] = deque()
        self._wait_seconds = 0.0

    @property
    def waiting(self) -> int:
        """Stream items that wait for room."""
        return sum(not turn.done() for _, turn in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether calls or stream items are in progress."""
        return bool(self.calls or self._holds)

    @contextmanager
    def holding(self, caller: Caller, size: int = 0, images: int = 0) -> Iterator[Hold]:
        """Around one unary request, of `size` bytes so far.

        Raises:
            EncoderBusy: it does not fit beside what is in progress.
        """
        hold = Hold(caller, 0, 0, bulk=False)
        if size or images:
            self.grow(hold, size, images)
        try:
            yield hold
        finally:
            self.release(hold)

    def grow(self, hold: Hold, size: int, images: int = 0) -> None:
        """Lets a unary request hold more: its message when that has come, or the answer that is now to be made.

        Raises:
            EncoderBusy: it does not fit.
        """
        more = Hold(hold.caller, size, images, bulk=False)
        if not self._has_room(more, beside=hold):
            self._end_stalled(hold.caller)
        elif self._caller_has_room(more, beside=hold):
            hold.size += size
            hold.images += images
            self._holds.add(hold)
            self._count(hold, size, images)
            return
        limits = f"{self._settings.max_queue_size} images and {self._settings.max_in_flight_bytes} bytes"
        raise EncoderBusy(
            f"{self.images} images of {self.bytes_held} bytes are in progress; the limits are {limits}, and "
            f"{self._settings.max_connection_bytes} bytes for one caller; try again in a moment"
        )

    def resize(self, hold: Hold, size: int) -> None:
        """From now on the request holds so many bytes and no image: only its answer is left."""
        change, images = size - hold.size, hold.images
        hold.size, hold.images = size, 0
        self._count(hold, change, -images)
        self._admit_waiting()

    async def wait(self, caller: Caller, size: int, images: int = 0) -> Hold:
        """Room for one stream item as soon as there is some, first come, first served, but past those whose own caller
        has too much in progress; give it back with `release`."""
        hold = Hold(caller, size, images, bulk=True)
        if not self.waiting and self._has_room(hold) and self._caller_has_room(hold):
            self._add(hold)
            return hold
        turn: Future[None] = get_running_loop().create_future()
        self._waiting.append((hold, turn))
        try:
            await turn
        except CancelledError:
            if turn.cancelled():
                self._admit_waiting()
            else:  # it was admitted just before it was cancelled
                self.release(hold)
            raise
        return hold

    def release(self, hold: Hold) -> None:
        """Gives everything back, and lets in who now fits."""
        if hold in self._holds:
            self._holds.remove(hold)
            self._count(hold, -hold.size, -hold.images)
            self._admit_waiting()

    def observe_wait(self, seconds: float) -> None:
        """How long an item took from being queued to being done, for the hint."""
        self._wait_seconds += 0.1 * (seconds - self._wait_seconds)

    @property
    def retry_hint_ms(self) -> int:
        """When to try again: about what items wait now, spread so that refused callers do not return together."""
        seconds = min(max(self._wait_seconds, _SHORTEST_HINT), _LONGEST_HINT)
        return round(1000 * seconds * random.uniform(0.75, 1.25))

    def _has_room(self, more: Hold, beside: Hold | None = None) -> bool:
        """A request larger than the limit has room where nothing else is in progress; max_message_bytes bounds it."""
        if not self._holds - {beside}:
            return True
        if self.images + more.images > self._settings.max_queue_size:
            return False
        if self.bytes_held + more.size > self._settings.max_in_flight_bytes:
            return False
        if not more.bulk or not (self._bulk_images or self._bulk_bytes):
            return True
        return (
            self._bulk_images + more.images <= _BULK_SHARE * self._settings.max_queue_size
            and self._bulk_bytes + more.size <= _BULK_SHARE * self._settings.max_in_flight_bytes
        )

    def _caller_has_room(self, more: Hold, beside: Hold | None = None) -> bool:
        limit = self._settings.max_connection_bytes * (_BULK_SHARE if more.bulk else 1)
        own = beside.size if beside is not None else 0
        held = [self._of_caller[key] for key in _keys(more.caller)]
        return all(size == own or size + more.size <= limit for size in held)

    def _end_stalled(self, newcomer: Caller) -> None:
        """Ends the call whose answer is not taken and whose caller holds most, if that is more than the newcomer: it
        makes room for the next attempt."""
        stalled = max(self.calls.stalled(), key=lambda place: self._bytes_of(place.caller), default=None)
        if stalled is not None and self._bytes_of(stalled.caller) > self._bytes_of(newcomer):
            self.calls.end(stalled)

    def _bytes_of(self, caller: Caller) -> int:
        return max(self._of_caller[key] for key in _keys(caller))

    def _admit_waiting(self) -> None:
        passed: deque[tuple[Hold, Future[None]]] = deque()
        while self._waiting:
            hold, turn = entry = self._waiting.popleft()
            if turn.done():  # cancelled
                continue
            if not self._caller_has_room(hold):
                passed.append(entry)
            elif self._has_room(hold):
                self._add(hold)
                turn.set_result(None)
            else:
                passed.append(entry)
                break  # nobody overtakes: a large request would never get its turn among small ones
        self._waiting.extendleft(reversed(passed))

    def _add(self, hold: Hold) -> None:
        self._holds.add(hold)
        self._count(hold, hold.size, hold.images)

    def _count(self, hold: Hold, size: int, images: int) -> None:
        self.bytes_held += size
        self.images += images
        self._bulk_bytes += hold.bulk * size
        self._bulk_images += hold.bulk * images
        for key in _keys(hold.caller):
            self._of_caller[key] += size
            if not self._of_caller[key]:
                del self._of_caller[key]


def _keys(caller: Caller) -> list[str]:
    """What a caller's bytes count for."""
    return [f"address {caller.address}", *([f"token {caller.token}"] if caller.token else [])]
