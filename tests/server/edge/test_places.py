"""Places on their own: how many, who is refused, and who has to give one up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from phs_milvus.contract.errors import EncoderBusy
from phs_server.edge import places as module
from phs_server.edge.callers import Caller, caller_of, endpoint_of
from phs_server.edge.places import Place, Places


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


class Crowd:
    """Calls that hold a place until they are cancelled."""

    def __init__(self, limit: int) -> None:
        self.closed: list[str] = []
        self.places = Places(limit, "calls", self.closed.append)
        self.inside: dict[str, Place] = {}
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def enter(self, name: str, address: str, token: str = "") -> None:
        self.tasks.append(asyncio.create_task(self._hold(name, Caller(f"{address}:{name}", address, token))))
        await asyncio.sleep(0.01)

    async def _hold(self, name: str, caller: Caller) -> None:
        try:
            with self.places.taken(caller) as place:
                self.inside[name] = place
                await asyncio.Event().wait()
        except EncoderBusy:
            self.refused.append(name)
        finally:
            self.inside.pop(name, None)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert len(self.places) == 0 and not self.places._addresses and not self.places._tokens


def test_places_are_counted_and_given_back() -> None:
    async def use() -> None:
        limited = Places(1, "calls", lambda peer: None)
        for _ in range(2):
            with (
                limited.taken(Caller("p", "a")),
                pytest.raises(EncoderBusy, match="1 "),
                limited.taken(Caller("q", "b")),
            ):
                pass
        assert len(limited) == 0

    run(use())


def test_who_holds_most_gives_up_its_newest_to_who_holds_less_until_both_hold_the_same() -> None:
    async def use() -> None:
        crowd = Crowd(4)
        for index in range(4):
            await crowd.enter(f"hog {index}", "hog")
        await crowd.enter("hog 4", "hog")
        assert crowd.refused == ["hog 4"]
        for index in range(3):
            await crowd.enter(f"other {index}", "other")
        assert crowd.refused == ["hog 4", "hog 3", "hog 2", "other 2"]
        assert sorted(crowd.inside) == ["hog 0", "hog 1", "other 0", "other 1"]
        await crowd.enter("third 0", "third")
        assert len(crowd.inside) == 4 and "third 0" in crowd.inside
        await crowd.leave()

    run(use())


def test_tokens_share_what_one_address_has() -> None:
    """Behind a proxy all callers have its address."""

    async def use() -> None:
        crowd = Crowd(3)
        for index in range(3):
            await crowd.enter(f"hog {index}", "proxy", "hog")
        await crowd.enter("other", "proxy", "other")
        assert crowd.refused == ["hog 2"] and "other" in crowd.inside
        await crowd.leave()

    run(use())


def test_many_tokens_of_one_address_take_nothing_from_others() -> None:
    async def use() -> None:
        crowd = Crowd(4)
        for index in range(2):
            await crowd.enter(f"good {index}", "good", "its own")
        for index in range(4):
            await crowd.enter(f"hog {index}", "hog", f"token {index}")
        assert crowd.refused == ["hog 2", "hog 3"] and {"good 0", "good 1"} < crowd.inside.keys()
        await crowd.leave()

    run(use())


def test_an_answer_on_its_way_is_left_alone_until_it_stalls_and_then_loses_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use() -> None:
        crowd = Crowd(2)
        for index in range(2):
            await crowd.enter(f"hog {index}", "hog")
        with crowd.inside["hog 0"].sending(), crowd.inside["hog 1"].sending():
            await crowd.enter("early", "other")
            assert crowd.refused == ["early"] and not crowd.closed
            monkeypatch.setattr(module, "STALLED_SECONDS", 0.0)
            await crowd.enter("late", "other")
            assert "late" in crowd.inside and crowd.closed == ["hog:hog 1"]
        await crowd.leave()

    run(use())


@pytest.mark.parametrize(
    ("peer", "address", "endpoint"),
    [
        ("ipv4:10.0.0.7:40312", "10.0.0.7", ("10.0.0.7", 40312)),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:5", "2001:db8:1:2::/64", ("2001:db8:1:2:3::4", 5)),
        ("ipv6:[::ffff:10.0.0.7]:5", "10.0.0.7", ("10.0.0.7", 5)),
        ("unix:", "unix:", None),
    ],
)
def test_callers_are_told_apart_by_address_not_by_connection(
    peer: str, address: str, endpoint: tuple[str, int] | None
) -> None:
    assert caller_of(peer).address == address and endpoint_of(peer) == endpoint
    assert caller_of(peer).is_private is (endpoint is None)
