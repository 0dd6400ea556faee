"""Which of several servers gets the next work: the one with the least outstanding. No I/O.

`Balance` is for single calls, `Lanes` for streams of images, one to each server. Both leave alone a server that fails,
for a pause that grows from 0.1 to 2 seconds, and then try it again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, EncoderUnavailable

# What another server may answer where this one did not.
ELSEWHERE = (EncoderUnavailable, EncoderBusy, DeadlineExceeded)
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
# Items that one of several servers is given before it has answered any; every answer makes room for one more.
_FIRST_ROOM = 2
# Servers answer batches: one is late from this many images' time on, and not within so many seconds.
_BATCH = 8
_SOONEST = 0.25
_MEMORY = 0.9  # of the moving averages, per answer

Clock = Callable[[], float]


def pause_after(failures: int) -> float:
    """Seconds for which to leave a server alone after so many failures in a row, jittered."""
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(failures - 1, 10)) * random.uniform(0.5, 1.0)


class Balance:
    """The single calls in progress at each server. Thread-safe."""

    def __init__(self, servers: Sequence[str], clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._outstanding = dict.fromkeys(servers, 0)
        self._failures = dict.fromkeys(servers, 0)
        self._away = dict.fromkeys(servers, 0.0)
        self._turn = 0

    def order(self, preferred: Sequence[str] = ()) -> list[str]:
        """The servers in the order in which to try them; those that failed a moment ago come last.

        Args:
            preferred: an order that outstanding calls do not change; none: least outstanding first, equals in turn.
        """
        with self._lock:
            now = self._clock()
            servers = list(self._outstanding)
            self._turn += 1
            turn = self._turn % max(1, len(servers))
            servers = list(preferred) or sorted(servers[turn:] + servers[:turn], key=self._outstanding.__getitem__)
            return sorted(servers, key=lambda server: self._away[server] > now)

    @contextmanager
    def calling(self, server: str | None) -> Iterator[None]:
        """Counts the call made inside the `with` block; None, which stands for all servers, is not counted."""
        if server is None:
            yield
            return
        with self._lock:
            self._outstanding[server] += 1
        try:
            yield
        except ELSEWHERE:
            with self._lock:
                self._failures[server] += 1
                self._away[server] = self._clock() + pause_after(self._failures[server])
            raise
        else:
            self._failures[server], self._away[server] = 0, 0.0
        finally:
            with self._lock:
                self._outstanding[server] -= 1


class Sending(Protocol):
    """A stream to one server."""

    def send(self, message: Any) -> None: ...

    def close(self) -> None: ...


SomeStream = TypeVar("SomeStream", bound=Sending)


@dataclass(eq=False)
class _Lane(Generic[SomeStream]):
    """One server of a stream: `sent` holds when each item was sent that it has not answered."""

    server: str | None
    stream: SomeStream | None = None
    sent: dict[int, float] = field(default_factory=dict)
    heard: float = 0.0  # when it last answered, or was given work after it had none
    pace: float | None = None  # seconds between its answers while it has work
    room: int = _FIRST_ROOM  # items that it may have
    failures: int = 0
    away_until: float = 0.0

    def answered(self, item: int, now: float) -> None:
        if self.sent.pop(item, None) is not None:
            self.pace = _mean(self.pace, now - self.heard)
        self.heard, self.failures, self.room = now, 0, self.room + 1

    def ahead(self, usual: float, now: float) -> float:
        """Seconds until it would answer one more item, as far as its answers tell; its silence tells as well."""
        pace = usual if self.pace is None else self.pace
        silent = (now - self.heard) / _BATCH if self.sent else 0.0
        return (len(self.sent) + 1) * max(pace, silent)


class Lanes(Generic[SomeStream]):
    """The items of one stream of images, spread over a stream to each server.

    An item goes to the server that is expected to answer it first. Where one of them has nothing to do and another is
    late with an item, the first gets a copy of it, and whichever answers first counts. So a server that stops costs a
    moment and loses nothing, and when it answers again, it is given work again. What a broken stream left unanswered
    goes to the other servers, or to the same where there is no other.

    Args:
        open: opens a stream to a server.
        most: items that one server may be given at a time.
    """

    def __init__(
        self,
        servers: Sequence[str | None],
        open: Callable[[str | None], SomeStream],
        most: int,
        clock: Clock = time.monotonic,
    ) -> None:
        room = most if len(servers) == 1 else _FIRST_ROOM
        self._lanes: list[_Lane[SomeStream]] = [_Lane(server, room=room) for server in servers]
        self._open = open
        self._most = most
        self._clock = clock
        self._messages: dict[int, Any] = {}  # what is not answered, oldest first
        self._homeless: list[int] = []  # of these, what no server has

    def send(self, message: Any) -> None:
        """Sends a message, which has an `id`; where no server can be tried now, `tend` does it later."""
        self._messages[message.id] = message
        self._homeless.append(message.id)
        self._settle(self._clock())

    def tend(self) -> float | None:
        """Does what is due. Returns the seconds after which there may be more; None: only an answer changes it."""
        now = self._clock()
        self._settle(now)
        self._back_up(now)
        waits = [lane.away_until - now for lane in self._lanes if lane.away_until > now]
        if len(self._lanes) > 1 and self._messages and any(not lane.sent for lane in self._lanes):
            waits.append(_SOONEST / 2)
        return max(0.001, min(waits)) if waits and self._messages else None

    def server_of(self, stream: SomeStream) -> str | None:
        """The server of a stream that is open; see `is_open`."""
        return self._lane(stream).server

    def is_open(self, stream: SomeStream | None) -> bool:
        """Whether what comes from this stream still counts."""
        return stream is not None and any(lane.stream is stream for lane in self._lanes)

    def repeats(self, stream: SomeStream, item: int) -> bool:
        """Whether this answers an item of which another server has answered a copy; it is then done with."""
        if item in self._messages or item not in self._lane(stream).sent:
            return False
        self.answered(stream, item)
        return True

    def answered(self, stream: SomeStream, item: int) -> None:
        """A server answered an item."""
        self._lane(stream).answered(item, self._clock())
        self._messages.pop(item, None)

    def broken(self, stream: SomeStream) -> None:
        """A stream ended, or its server takes no more."""
        lane, now = self._lane(stream), self._clock()
        lane.stream = None
        stream.close()
        lane.failures += 1
        lane.room = 1 if len(self._lanes) > 1 else self._most
        lane.away_until = now + pause_after(lane.failures)
        left, lane.sent = lane.sent, {}
        held = {item for other in self._lanes for item in other.sent}
        self._homeless += [item for item in left if item in self._messages and item not in held]

    def close(self) -> None:
        """Ends all streams."""
        for lane in self._lanes:
            if lane.stream is not None:
                lane.stream.close()
                lane.stream = None

    def _settle(self, now: float) -> None:
        """Sends what no server has."""
        waiting, self._homeless = sorted(item for item in self._homeless if item in self._messages), []
        live = [lane for lane in self._lanes if lane.away_until <= now]
        paces = [lane.pace for lane in self._lanes if lane.pace is not None]
        usual = sum(paces) / len(paces) if paces else 1.0
        for place, item in enumerate(waiting):
            best = min(live, key=lambda lane: (lane.ahead(usual, now), len(lane.sent)), default=None)
            if best is None or len(best.sent) >= min(self._most, best.room):
                self._homeless = waiting[place:]  # an answer makes room, or a pause ends
                return
            self._give(best, item, now)

    def _back_up(self, now: float) -> None:
        """Gives servers that have nothing to do copies of what others are late with."""
        for lane in self._lanes:
            if lane.sent or lane.away_until > now:
                continue
            known = [other.pace for other in self._lanes if other.pace is not None]
            usual = lane.pace if lane.pace is not None else max(known, default=None)
            if usual is None:
                continue  # nobody has answered yet: nobody is late
            late = now - max(_SOONEST, _BATCH * usual)
            holders = {
                item: [other.sent[item] for other in self._lanes if item in other.sent] for item in self._messages
            }
            overdue = [item for item, times in holders.items() if times and max(times) < late]
            for item in overdue[: min(_BATCH, lane.room)]:
                self._give(lane, item, now)

    def _give(self, lane: _Lane[SomeStream], item: int, now: float) -> None:
        if lane.stream is None:
            lane.stream = self._open(lane.server)
        if not lane.sent:
            lane.heard = now
        lane.sent[item] = now
        lane.stream.send(self._messages[item])

    def _lane(self, stream: SomeStream) -> _Lane[SomeStream]:
        return next(lane for lane in self._lanes if lane.stream is stream)


def _mean(before: float | None, value: float) -> float:
    return value if before is None else _MEMORY * before + (1 - _MEMORY) * value
