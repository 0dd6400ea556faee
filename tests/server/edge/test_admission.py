"""Admission on its own: images, bytes in all and per caller, who waits and who is next."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from phs_milvus.contract.errors import EncoderBusy
from phs_server.config import Settings
from phs_server.edge.admission import Admission, Hold
from phs_server.edge.callers import Caller


def admission(**limits: int) -> Admission:
    return Admission(Settings(**limits))


def who(name: str, token: str = "") -> Caller:
    return Caller(peer=f"{name}:1", address=name, token=token)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 30))


def nothing_left(limited: Admission) -> bool:
    return not (limited.images or limited.bytes_held or limited.waiting or limited._of_caller or limited._bulk_bytes)


def test_bytes_are_bounded_in_all_and_per_caller() -> None:
    limited = admission(max_in_flight_bytes=100, max_connection_bytes=60)
    with limited.holding(who("a"), 50):
        with pytest.raises(EncoderBusy), limited.holding(who("a"), 20):
            pass
        with limited.holding(who("b"), 50), pytest.raises(EncoderBusy), limited.holding(who("c"), 1):
            pass
        with limited.holding(who("a"), 10):
            assert limited.bytes_held == 60
    assert nothing_left(limited)


def test_a_token_s_bytes_are_counted_wherever_it_comes_from() -> None:
    limited = admission(max_in_flight_bytes=100, max_connection_bytes=60)
    with limited.holding(who("a", "secret"), 50):
        with pytest.raises(EncoderBusy), limited.holding(who("b", "secret"), 20):
            pass
        with limited.holding(who("b", "other"), 20):
            pass


def test_images_are_bounded() -> None:
    limited = admission(max_queue_size=2)
    with limited.holding(who("a"), 1, images=1), limited.holding(who("a"), 1, images=1):
        with pytest.raises(EncoderBusy, match="2 images"), limited.holding(who("b"), 1, images=1):
            pass
        with limited.holding(who("b"), 1):
            pass
    assert nothing_left(limited)


def test_what_is_larger_than_a_limit_is_worked_on_alone() -> None:
    limited = admission(max_in_flight_bytes=10, max_connection_bytes=10)
    with limited.holding(who("a"), 1000), pytest.raises(EncoderBusy), limited.holding(who("b"), 1):
        pass


def test_an_answer_is_held_in_place_of_its_request() -> None:
    limited = admission(max_in_flight_bytes=100, max_queue_size=1)
    with limited.holding(who("a")) as hold:
        limited.grow(hold, 10, images=1)
        with pytest.raises(EncoderBusy):
            limited.grow(Hold(who("b"), 0, 0, bulk=False), 1, images=1)
        limited.grow(hold, 50)
        assert (limited.bytes_held, limited.images) == (60, 1)
        with pytest.raises(EncoderBusy), limited.holding(who("b"), 50):
            pass
        limited.resize(hold, 20)
        assert (limited.bytes_held, limited.images) == (20, 0)
        with limited.holding(who("b"), 50, images=1):
            pass
    assert nothing_left(limited)


def test_waiting_is_first_come_first_served_past_those_who_have_too_much() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=134, max_connection_bytes=80)  # of which streams use 100 and 60
        done: list[str] = []

        async def take(name: str, caller: str, size: int) -> None:
            await limited.wait(who(caller), size)
            done.append(name)

        a, b = await limited.wait(who("a"), 60), await limited.wait(who("b"), 40)
        waiting = [asyncio.create_task(take(*one)) for one in (("a2", "a", 60), ("c1", "c", 30), ("c2", "c", 10))]
        await asyncio.sleep(0)
        limited.release(b)
        await asyncio.sleep(0)
        assert done == ["c1", "c2"] and limited.bytes_held == 100
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        limited.release(a)
        await asyncio.sleep(0)
        assert done == ["c1", "c2"] and limited.bytes_held == 40

    run(use())


def test_streams_leave_a_quarter_to_calls_in_all_and_of_each_caller() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=200, max_connection_bytes=100)
        a, b = [await limited.wait(who(name), 75) for name in ("a", "b")]
        waiting = [asyncio.create_task(limited.wait(who(name), 1)) for name in ("a", "c")]
        await asyncio.sleep(0)
        assert limited.bytes_held == 150 and limited.waiting == 2
        busy = pytest.raises(EncoderBusy)
        with limited.holding(who("a"), 25), limited.holding(who("c"), 25), busy, limited.holding(who("c"), 1):
            pass
        limited.release(b)
        await waiting[1]
        assert limited.waiting == 1
        limited.release(a)
        await waiting[0]

    run(use())


def test_a_large_request_is_not_overtaken_by_small_ones() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=134)  # of which streams use 100
        a, b = await limited.wait(who("a"), 30), await limited.wait(who("b"), 60)
        large = asyncio.create_task(limited.wait(who("c"), 80))
        await asyncio.sleep(0)
        small = asyncio.create_task(limited.wait(who("d"), 10))
        limited.release(a)
        await asyncio.sleep(0)
        assert not large.done() and not small.done()
        limited.release(b)
        await asyncio.gather(large, small)
        assert limited.bytes_held == 90

    run(use())


def test_bytes_granted_to_a_waiter_that_is_cancelled_at_that_moment_are_not_lost() -> None:
    async def use() -> None:
        limited = admission(max_in_flight_bytes=10)
        a = await limited.wait(who("a"), 10)
        waiter = asyncio.create_task(limited.wait(who("b"), 10))
        await asyncio.sleep(0)
        limited.release(a)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert nothing_left(limited)

    run(use())


def test_a_cancelled_waiter_lets_the_next_one_in() -> None:
    async def use() -> None:
        limited = admission(max_queue_size=4, max_in_flight_bytes=100)
        entered: list[str] = []
        leave = asyncio.Event()

        async def hold(name: str, size: int) -> None:
            held = await limited.wait(who(name), size, images=1)
            entered.append(name)
            await leave.wait()
            limited.release(held)

        tasks = {name: asyncio.create_task(hold(name, size)) for name, size in (("a", 60), ("b", 30), ("c", 1))}
        await asyncio.sleep(0)
        # b does not fit into 75 bytes, and c does not pass it.
        assert entered == ["a"] and (limited.images, limited.bytes_held) == (1, 60)
        tasks["b"].cancel()
        await asyncio.sleep(0.01)
        assert entered == ["a", "c"]
        with pytest.raises(EncoderBusy, match="61 bytes"), limited.holding(who("d"), 40, images=1):
            pass
        leave.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert nothing_left(limited)

    run(use())


def test_bulk_keeps_its_turn_where_calls_take_all_places_among_the_images() -> None:
    async def use() -> None:
        limited = admission(max_queue_size=4)
        leave = [asyncio.Event() for _ in range(4)]
        entered = 0

        async def call(index: int) -> None:
            with limited.holding(who("calls"), 1, images=1):
                await leave[index].wait()

        async def bulk() -> None:
            nonlocal entered
            held = await limited.wait(who("bulk"), 1, images=1)
            entered += 1
            try:
                await asyncio.Event().wait()
            finally:
                limited.release(held)

        calls = [asyncio.create_task(call(index)) for index in range(4)]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(bulk()) for _ in range(5)]
        for index in range(4):
            await asyncio.sleep(0)
            assert (entered, limited.waiting) == (index, 5 - index)
            leave[index].set()
            await calls[index]
            # While bulk waits, a call gets a place only once bulk holds its share, three of four.
            if index < 3:
                with pytest.raises(EncoderBusy):
                    await call(3)
            await asyncio.sleep(0)
        assert (entered, limited.images) == (3, 3)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert nothing_left(limited)

    run(use())


def test_the_retry_hint_follows_what_items_wait() -> None:
    limited = admission()
    assert 37 <= limited.retry_hint_ms <= 63
    for _ in range(100):
        limited.observe_wait(1.0)
    assert 700 <= limited.retry_hint_ms <= 1250
    for _ in range(100):
        limited.observe_wait(60.0)
    assert limited.retry_hint_ms <= 6250
