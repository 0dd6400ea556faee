"""Admission on its own: counts, bytes in all and per connection, who waits and who is next."""

from __future__ import annotations

import asyncio

import pytest

from phs_milvus.contract.errors import EncoderBusy
from phs_server.config import Settings
from phs_server.edge.admission import Admission


def admission(**limits: int) -> Admission:
    return Admission(Settings(**limits))


def test_calls_and_streams_are_counted_and_given_back() -> None:
    limited = admission(max_calls=1, max_streams=1)
    for place in (limited.call, limited.stream):
        for _ in range(2):
            with place(), pytest.raises(EncoderBusy, match="1 "), place():
                pass
    assert (limited.calls, limited.streams) == (0, 0)


def test_bytes_are_bounded_in_all_and_per_connection() -> None:
    limited = admission(max_in_flight_bytes=100, max_connection_bytes=60)
    with limited.holding("a", 50):
        with pytest.raises(EncoderBusy), limited.holding("a", 20):
            pass
        with limited.holding("b", 50), pytest.raises(EncoderBusy), limited.holding("c", 1):
            pass
        with limited.holding("a", 10):
            assert limited.bytes_held == 60
    assert limited.bytes_held == 0


def test_what_is_larger_than_a_limit_is_worked_on_alone() -> None:
    limited = admission(max_in_flight_bytes=10, max_connection_bytes=10)
    with limited.holding("a", 1000), pytest.raises(EncoderBusy), limited.holding("b", 1):
        pass


def test_waiting_is_first_come_first_served_past_those_whose_connection_is_full() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=134, max_connection_bytes=80)  # of which streams use 100 and 60
        done: list[str] = []

        async def take(name: str, peer: str, size: int) -> None:
            await limited.wait(peer, size)
            done.append(name)

        await limited.wait("a", 60)
        await limited.wait("b", 40)
        waiting = [asyncio.create_task(take(*one)) for one in (("a2", "a", 60), ("c1", "c", 30), ("c2", "c", 10))]
        await asyncio.sleep(0)
        limited.release("b", 40)
        await asyncio.sleep(0)
        assert done == ["c1", "c2"] and limited.bytes_held == 100
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        limited.release("a", 60)
        await asyncio.sleep(0)
        assert done == ["c1", "c2"] and limited.bytes_held == 40

    asyncio.run(use())


def test_streams_leave_a_quarter_to_calls_in_all_and_on_each_connection() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=200, max_connection_bytes=100)
        for peer in ("a", "b"):
            await limited.wait(peer, 75)
        waiting = [asyncio.create_task(limited.wait(peer, 1)) for peer in ("a", "c")]
        await asyncio.sleep(0)
        assert limited.bytes_held == 150 and limited.waiting == 2
        with limited.holding("a", 25), limited.holding("c", 25), pytest.raises(EncoderBusy), limited.holding("c", 1):
            pass
        limited.release("b", 75)
        await waiting[1]
        assert limited.waiting == 1
        limited.release("a", 75)
        await waiting[0]

    asyncio.run(use())


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=134)  # of which streams use 100
        await limited.wait("a", 30)
        await limited.wait("b", 60)
        large = asyncio.create_task(limited.wait("c", 80))
        await asyncio.sleep(0)
        small = asyncio.create_task(limited.wait("d", 10))
        limited.release("a", 30)
        await asyncio.sleep(0)
        assert not large.done() and not small.done()
        limited.release("b", 60)
        await asyncio.gather(large, small)
        assert limited.bytes_held == 90

    asyncio.run(use())


def test_bytes_granted_to_a_waiter_that_is_cancelled_at_that_moment_are_not_lost() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=10)
        await limited.wait("a", 10)
        waiter = asyncio.create_task(limited.wait("b", 10))
        await asyncio.sleep(0)
        limited.release("a", 10)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert limited.bytes_held == 0

    asyncio.run(use())


def test_the_retry_hint_follows_what_items_wait() -> None:
    limited = admission()
    assert 37 <= limited.retry_hint_ms <= 63
    for _ in range(100):
        limited.observe_wait(1.0)
    assert 700 <= limited.retry_hint_ms <= 1250
    for _ in range(100):
        limited.observe_wait(60.0)
    assert limited.retry_hint_ms <= 6250
