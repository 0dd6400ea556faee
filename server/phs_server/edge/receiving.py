"""Reads messages, and bounds what unfinished ones hold.

gRPC shows a message only when its last byte has come. Until then up to max_message_bytes of it lie in gRPC, for every
call that may read: a hundred callers who hold back the last byte would hold gigabytes. The system knows how many bytes
came on each connection; those that were not handed to us as messages are unfinished.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, defaultdict

import grpc

from phs_server.edge.callers import caller_of, endpoint_of
from phs_server.edge.connections import Connections
from phs_server.edge.places import Place
from phs_server.ops import memory

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.02
# What a message of some size takes on the wire beside itself, in frames, headers and TLS records.
_OVERHEAD, _SHARE_OVERHEAD = 128, 0.004
# Addresses that may have all that one may have.
_SHARES = 4


_unfinished_reads: set[asyncio.Future[bytes]] = set()


def start_read(context: grpc.aio.ServicerContext) -> asyncio.Future[bytes]:
    """Starts to read a call's next message. Wait for it, or shield it; never cancel it.

    gRPC's Python layer frees what it received only where its read comes to an end: of a read that is cancelled, the
    message is lost for good when it arrives all the same. The end of the call ends the read.
    """
    reading = asyncio.ensure_future(context.read())
    _unfinished_reads.add(reading)
    reading.add_done_callback(_read_ended)
    return reading


def _read_ended(reading: asyncio.Future[bytes]) -> None:
    _unfinished_reads.discard(reading)
    if not reading.cancelled():
        reading.exception()  # where nobody waits any more, it is of no interest


class Receiver:
    """Reads the messages of all calls. Belongs to one event loop.

    Args:
        limit: bytes of unfinished messages of one address, a quarter of what all may have. Beyond, the calls on the
            connection that has most of them are refused.
        largest: bytes of one message.
    """

    def __init__(self, limit: int, largest: int, connections: Connections) -> None:
        self._limit = limit
        self._most_harmless = limit // largest
        self._connections = connections
        self._reading: dict[str, list[Place]] = defaultdict(list)
        self._delivered: dict[str, float] = defaultdict(float)

    async def read(self, context: grpc.aio.ServicerContext, place: Place) -> bytes | None:
        """The next message of a call, None at the end of them; the call is refused where its connection has too much
        unfinished."""
        peer = place.caller.peer
        self._reading[peer].append(place)
        try:
            data = await asyncio.shield(start_read(context))
        finally:
            self._reading[peer].remove(place)
            if not self._reading[peer]:
                del self._reading[peer]
        if data is grpc.aio.EOF:
            return None
        self._delivered[peer] += (1 + _SHARE_OVERHEAD) * len(data) + _OVERHEAD
        return bytes(data)

    async def watch(self) -> None:
        """Checks the unfinished messages at short intervals, forever."""
        pause = _LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            if sum(map(len, self._reading.values())) > self._most_harmless:
                started = time.monotonic()
                if self._look():
                    # Not awaited: it takes as long as many more bytes take to come.
                    threading.Thread(target=memory.trim, name="trim", daemon=True).start()
                # With thousands of connections a look takes milliseconds.
                pause = max(_LOOK_SECONDS, 10 * (time.monotonic() - started))

    def _look(self) -> bool:
        """Whether calls had to be refused."""
        received = self._connections.received()
        for peer in list(self._delivered):
            known = received.get(endpoint_of(peer))
            if known is None:
                del self._delivered[peer]
            elif peer not in self._reading:
                self._delivered[peer] = known  # exactly: what calls that were cancelled had sent is gone
        unfinished = {peer: received.get(endpoint_of(peer), 0) - self._delivered[peer] for peer in self._reading}
        refused = False
        while most := self._too_much(unfinished):
            size = unfinished.pop(most)
            log.warning("refused calls of %s, whose messages are unfinished at %d MiB", most, size / 2**20)
            for place in list(self._reading[most]):
                place.end()
            self._delivered[most] += size
            refused = True
        return refused

    def _too_much(self, unfinished: dict[str, float]) -> str | None:
        """The connection that has most, of the address that has most, if that is more than is allowed."""
        addresses: Counter[str] = Counter()
        for peer, size in unfinished.items():
            addresses[caller_of(peer).address] += max(0, int(size))
        ((address, most),) = addresses.most_common(1) or [("", 0)]
        if most <= self._limit and addresses.total() <= _SHARES * self._limit:
            return None
        return max((peer for peer in unfinished if caller_of(peer).address == address), key=unfinished.__getitem__)
