"""Places for calls, shared fairly: when all are taken, the caller who holds most gives one up to a caller with less."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from phs_milvus.contract.errors import EncoderBusy
from phs_server.edge.callers import Caller

# An answer that has not been taken for so long may cost its caller the connection, when others need the room.
STALLED_SECONDS = 5.0


@dataclass(eq=False)
class Place:
    """One call in progress."""

    caller: Caller
    task: asyncio.Task[object]
    sending_since: float | None = None
    given_up: bool = field(default=False, repr=False)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around the write of an answer."""
        self.sending_since = time.monotonic()
        try:
            yield
        finally:
            self.sending_since = None

    @property
    def stalled(self) -> bool:
        """Whether its caller does not take the answer."""
        return self.sending_since is not None and time.monotonic() - self.sending_since > STALLED_SECONDS


class Places:
    """A bounded number of calls in progress. Belongs to one event loop.

    Args:
        limit: how many.
        what: their name in messages, in the plural.
        close: ends a connection, given gRPC's name of its peer. gRPC has no other way to end a call whose answer is
            not taken.
    """

    def __init__(self, limit: int, what: str, close: Callable[[str], object]) -> None:
        self._limit = limit
        self._what = what
        self._close = close
        self._held: list[Place] = []
        self._addresses: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def taken(self, caller: Caller) -> Iterator[Place]:
        """Around one call, in its own task.

        Raises:
            EncoderBusy: all places are taken by callers with no more of them; or, later, this place had to be given up
                to a caller with fewer.
        """
        if len(self._held) >= self._limit and not self._make_room(caller):
            raise EncoderBusy(f"{len(self._held)} {self._what} are in progress, the limit; try again in a moment")
        task = asyncio.current_task()
        assert task is not None
        place = Place(caller, task)
        self._held.append(place)
        self._count(place, 1)
        try:
            yield place
        except asyncio.CancelledError:
            if not place.given_up:
                raise
            raise EncoderBusy(f"too many {self._what} from one caller while others wait; try again") from None
        finally:
            self._leave(place)

    def stalled(self) -> list[Place]:
        """The calls whose answers are not taken."""
        return [place for place in self._held if place.stalled]

    def end(self, place: Place) -> None:
        """Refuses a call that is in progress; where its answer is already on the way, ends its connection."""
        place.given_up = True
        self._leave(place)
        if place.sending_since is None:
            place.task.cancel()
        else:
            self._close(place.caller.peer)

    def _make_room(self, newcomer: Caller) -> bool:
        """Ends the newest call of the caller who holds most, where that leaves the newcomer with no more than it."""
        best: tuple[int, int] | None = None
        for index, place in enumerate(self._held):
            excess = self._excess(place.caller, newcomer)
            if excess > 1 and (place.sending_since is None or place.stalled):
                best = max(best or (0, 0), (excess, index))
        if best is None:
            return False
        self.end(self._held[best[1]])
        return True

    def _excess(self, holder: Caller, newcomer: Caller) -> int:
        """How many places more a caller holds: by address or by token; 0 where by one of them it holds no more."""
        excess = []
        if holder.address != newcomer.address:
            excess.append(self._addresses[holder.address] - self._addresses[newcomer.address])
        if holder.token != newcomer.token:
            excess.append(self._tokens[holder.token] - self._tokens[newcomer.token])
        return max(excess) if excess and min(excess) > 0 else 0

    def _leave(self, place: Place) -> None:
        if place in self._held:
            self._held.remove(place)
            self._count(place, -1)

    def _count(self, place: Place, change: int) -> None:
        for counter, key in ((self._addresses, place.caller.address), (self._tokens, place.caller.token)):
            counter[key] += change
            if not counter[key]:
                del counter[key]
