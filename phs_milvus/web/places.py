"""What all requests hold at once: places, and bytes of bodies. One caller never has more than half of either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from phs_milvus.web.problems import Problem

_MOST_REQUESTS = 64
_LEAST_BYTES = 512 * 2**20


@dataclass
class Place:
    """What one request holds until it is answered."""

    places: Places
    caller: str
    bytes: int = 0

    def take(self, count: int) -> None:
        """Counts bytes of the request's body.

        Raises:
            Problem: 429 or 503, too many bytes are held by this caller or by all.
        """
        self.places.take(self, count)


@dataclass
class Places:
    """The room of one server; used on its event loop only.

    Attributes:
        body_bytes: the most that one body may have; four of them find room at least.
    """

    body_bytes: int
    requests: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def taken(self, caller: str) -> Iterator[Place]:
        """A place for one request.

        Raises:
            Problem: 429 where this caller has as many as it may, 503 where all are taken.
        """
        _check(self.requests, caller, 1, _MOST_REQUESTS, "requests")
        self.requests[caller] += 1
        place = Place(self, caller)
        try:
            yield place
        finally:
            _give_back(self.requests, caller, 1)
            _give_back(self.held, caller, place.bytes)

    def take(self, place: Place, count: int) -> None:
        """See `Place.take`."""
        _check(self.held, place.caller, count, max(_LEAST_BYTES, 4 * self.body_bytes), "bytes")
        self.held[place.caller] += count
        place.bytes += count


def _check(taken: Counter[str], caller: str, more: int, most: int, what: str) -> None:
    if taken[caller] + more > most // 2:
        raise Problem(
            429, f"you have {taken[caller]:,} {what} in progress, and {most // 2:,} are allowed; send less at once"
        )
    if taken.total() + more > most:
        raise Problem(503, f"this server has {taken.total():,} {what} in progress, and takes {most:,}; try again")


def _give_back(taken: Counter[str], caller: str, count: int) -> None:
    taken[caller] -= count
    if taken[caller] <= 0:
        del taken[caller]
