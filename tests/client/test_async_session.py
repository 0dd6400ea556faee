"""AsyncBulkSession does what BulkSession does, is cancelled cleanly, and leaves no task behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.session import AsyncBulkSession
from phs_milvus.contract.errors import EncoderUnavailable, ImageError, InvalidInput
from phs_milvus.contract.types import Encoding
from tests.client.support import Scripted
from tests.servers import ServerProcess

Queue = asyncio.Queue


async def items_of(waiting: Queue) -> AsyncIterator[tuple]:
    while (item := await waiting.get()) is not None:
        yield item


async def check_nothing_is_left() -> None:
    async def gone() -> None:
        while any(task.get_name() in ("phs-feed", "phs-stream") for task in asyncio.all_tasks()):
            await asyncio.sleep(0.01)

    await asyncio.wait_for(gone(), 30)


def test_as_they_come_and_errors_in_place(address: str, images: list[Path], embeddings: np.ndarray) -> None:
    async def use() -> None:
        waiting: Queue = Queue()
        async with (
            AsyncEncoder(address) as encoder,
            AsyncBulkSession(encoder, items_of(waiting), done={"b"}, ordered=True) as session,
        ):
            waiting.put_nowait(("a", images[0]))
            key, result = await anext(session)  # while the feed waits
            assert key == "a"
            np.testing.assert_allclose(result.embedding, embeddings[0], atol=1e-5)
            for item in (("b", images[1]), ("c", "nowhere.jpg"), ("d", lambda: images[3]), None):
                waiting.put_nowait(item)
            rest = [(key, type(result)) async for key, result in session]
            assert rest == [("c", ImageError), ("d", Encoding)] and session.skipped == 1
            waiting.put_nowait("wrong")
            async with AsyncBulkSession(encoder, items_of(waiting)) as other:
                with pytest.raises(InvalidInput, match="yields"):
                    await anext(other)
        await check_nothing_is_left()

    asyncio.run(use())


def test_bounded_and_in_either_order(scripted: Callable[..., tuple[Scripted, str]], images: list[Path]) -> None:
    taken = given = ahead = 0

    async def feed() -> AsyncIterator[tuple[int, Path]]:
        nonlocal taken
        for number in range(400):
            taken += 1
            yield number, images[0]

    async def use(ordered: bool) -> list[int]:
        nonlocal taken, given, ahead
        taken, given, keys = 0, 0, []
        async with (
            AsyncEncoder(scripted()[1]) as encoder,
            AsyncBulkSession(encoder, feed(), ordered=ordered, in_flight=8) as session,
        ):
            async for key, result in session:
                keys.append(key)
                given += 1
                ahead = max(ahead, taken - given)
                assert result.width == key + 1
        return keys

    assert asyncio.run(use(True)) == list(range(400))
    keys = asyncio.run(use(False))
    assert keys[:4] == [1, 0, 3, 2] and sorted(keys) == list(range(400))
    assert ahead <= 8


def test_stop_takes_nothing_from_the_queue_that_is_not_answered(address: str, images: list[Path]) -> None:
    async def use() -> None:
        waiting: Queue = Queue()
        for number in range(40):
            waiting.put_nowait((number, images[number % 24]))
        keys = []
        async with AsyncEncoder(address) as encoder:
            async with AsyncBulkSession(encoder, items_of(waiting), in_flight=4) as session:
                async for key, _ in session:
                    keys.append(key)
                    if len(keys) == 10:
                        session.stop()
            assert sorted(keys) == list(range(len(keys))) and waiting.qsize() == 40 - len(keys) > 20
            empty: Queue = Queue()
            async with AsyncBulkSession(encoder, items_of(empty)) as session:
                asyncio.get_running_loop().call_later(0.2, session.stop)
                assert [key async for key, _ in session] == []
            async with AsyncBulkSession(encoder, items_of(empty)) as session:
                session.stop()
                assert [key async for key, _ in session] == []
        await check_nothing_is_left()

    asyncio.run(use())


def test_cancelled_while_it_waits_for_the_feed_or_for_answers(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    async def consume(encoder: AsyncEncoder, waiting: Queue) -> None:
        async with AsyncBulkSession(encoder, items_of(waiting)) as session:
            async for _ in session:
                pass

    async def use() -> None:
        async with AsyncEncoder(scripted()[1]) as encoder:
            # The scripted server answers a lone item when it gets another one.
            for items in ([], [("a", images[0])]):
                waiting: Queue = Queue()
                for item in items:
                    waiting.put_nowait(item)
                task = asyncio.create_task(consume(encoder, waiting))
                await asyncio.sleep(0.5)
                assert not task.done() and waiting.empty()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, 30)
                await check_nothing_is_left()
            # The encoder goes on.
            results = [result async for _, result in encoder.encode_many(images[:2], keys="ab")]
            assert [result.width for result in results] == [1, 2]
        await check_nothing_is_left()

    asyncio.run(use())


def test_closing_the_encoder_ends_the_session(address: str, images: list[Path]) -> None:
    async def endless() -> AsyncIterator[tuple[str, Path]]:
        while True:
            yield "same", images[0]

    async def use() -> None:
        encoder = AsyncEncoder(address)
        async with AsyncBulkSession(encoder, endless()) as session:
            await anext(session)
            await encoder.close()
            with pytest.raises(EncoderUnavailable, match="is closed"):
                async for _ in session:
                    pass
        await check_nothing_is_left()

    asyncio.run(asyncio.wait_for(use(), 60))


def test_the_server_is_killed_in_the_middle(tiny_model: Path, images: list[Path], embeddings: np.ndarray) -> None:
    async def use(server: ServerProcess) -> None:
        waiting: Queue = Queue()
        for number in range(120):
            waiting.put_nowait((number, images[number % 24]))
        waiting.put_nowait(None)
        found = {}
        async with (
            AsyncEncoder(server.address, timeout=5) as encoder,
            AsyncBulkSession(encoder, items_of(waiting), in_flight=16) as session,
        ):
            async for key, result in session:
                found[key] = result.embedding
                if len(found) == 60:
                    server.kill()
                    server.restart()
        np.testing.assert_allclose([found[key] for key in range(120)], np.tile(embeddings, (5, 1)), atol=1e-5)

    with ServerProcess(tiny_model, precision="float32") as server:
        asyncio.run(use(server))
