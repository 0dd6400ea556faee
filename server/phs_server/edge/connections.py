"""The TCP connections of this server, by way of the process's file descriptors, for what gRPC cannot do.

gRPC's Python server neither lists its connections nor ends one: a client that takes no answer would hold it for ever, a
client that says nothing would hold up the end, and one address could take every connection. Shutting a socket down is
seen by gRPC as a client that went away. Where the system does not list descriptors, nothing is found and nothing ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections import defaultdict
from collections.abc import Iterator

from phs_server.edge.callers import endpoint_of, plain_address

_DESCRIPTORS = "/dev/fd"


class Connections:
    """Connections that clients opened to `port`, which is set once it is bound."""

    def __init__(self) -> None:
        self.port = 0

    def close(self, peer: str) -> bool:
        """Ends the connection that gRPC names `peer`; False where there is none."""
        wanted, found = endpoint_of(peer), False
        for endpoint, connection in self._all():
            if endpoint == wanted:
                _shut_down(connection)
                found = True
        return found

    def close_all(self) -> int:
        """Ends every connection; returns how many."""
        count = 0
        for _, connection in self._all():
            _shut_down(connection)
            count += 1
        return count

    def thin_out(self, limit: int) -> int:
        """Where more than `limit` are open, ends some of the address that has most; returns how many."""
        if not self.port or _descriptors() <= limit:
            return 0
        by_address: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for (address, port), _ in self._all():
            by_address[address].append((address, port))
        too_many = sum(map(len, by_address.values())) - limit
        ends: set[tuple[str, int]] = set()
        while len(ends) < too_many:
            most = max(by_address.values(), key=len)
            ends.add(most.pop(random.randrange(len(most))))
        if ends:
            for endpoint, connection in self._all():
                if endpoint in ends:
                    _shut_down(connection)
        return len(ends)

    def _all(self) -> Iterator[tuple[tuple[str, int], socket.socket]]:
        """((address, port) of the client, its socket), each socket open until the next is asked for."""
        try:
            names = os.listdir(_DESCRIPTORS)  # noqa: PTH208
        except OSError:
            return
        for name in names:
            with contextlib.suppress(OSError, ValueError), _duplicate(int(name)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    own, other = connection.getsockname(), connection.getpeername()  # a listener has no peer
                    if own[1] == self.port:
                        yield (plain_address(other[0]), other[1]), connection


def _descriptors() -> int:
    try:
        return len(os.listdir(_DESCRIPTORS))  # noqa: PTH208
    except OSError:
        return 0


def _duplicate(descriptor: int) -> socket.socket:
    """A socket object on a duplicate, whatever becomes of the original meanwhile. OSError where it is no socket."""
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)
