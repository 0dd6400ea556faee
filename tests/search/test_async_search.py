"""AsyncFocusedSearch gives what FocusedSearch gives, so many at a time, and lets go of what is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from pathlib import Path

import pytest

from phs_milvus import AsyncFocusedSearch, Box, Focus, FocusedSearch, Query, StoredImage
from phs_milvus.contract.errors import ImageError, InvalidInput
from phs_milvus.search.hits import SearchResult

PROMPT = Box(20, 20, 90, 100)


def scores(result: SearchResult) -> tuple[str, list[float]]:
    """The best hit and all scores; two rows are of one picture, and may change places."""
    return result[0].id, [pytest.approx(hit.score, abs=1e-5) for hit in result]


def test_the_same_results_arguments_and_errors(photo_search: FocusedSearch, photos: list[Path]) -> None:
    options = {"limit": 4, "candidates": 20, "score": "query_db", "focus": Focus.paper(), "output_fields": ["width"]}

    async def use() -> None:
        async with AsyncFocusedSearch(photo_search) as search:
            result = await search.search(photos[3], PROMPT, **options)
            blocking = photo_search.search(photos[3], PROMPT, **options)
            assert scores(result) == scores(blocking) and result[0].fields == {"width": 160}
            queries = [Query(photos[1], PROMPT), Query(StoredImage(photos[2].name))]
            many = await search.search_many(queries, limit=3)
            assert [scores(one) for one in many] == [scores(one) for one in photo_search.search_many(queries, limit=3)]
            located = await search.run(result.locate, photos[0].parent, boxes=1)
            assert all(len(hit.boxes) == 1 for hit in located)
            assert await search.file_of(StoredImage(photos[2].name)) == str(photos[2])
            with pytest.raises(ImageError, match="not found"):
                await search.search("nowhere.jpg")
            with pytest.raises(TypeError, match="limt"):
                await search.search(photos[3], limt=3)
        with pytest.raises(InvalidInput, match="is closed"):
            await search.search(photos[3])

    asyncio.run(use())
    with pytest.raises(InvalidInput) as caught:
        AsyncFocusedSearch(photo_search, in_flight=0)
    assert caught.value.field == "in_flight"


def test_many_at_once_are_each_as_alone(photo_search: FocusedSearch, photos: list[Path]) -> None:
    expected = [scores(photo_search.search(path, PROMPT, limit=5)) for path in photos[1:21]]

    async def use() -> list[SearchResult]:
        async with AsyncFocusedSearch(photo_search, in_flight=4) as search:
            return await asyncio.gather(*(search.search(path, PROMPT, limit=5) for path in photos[1:21] * 2))

    assert [scores(result) for result in asyncio.run(use())] == expected * 2


@pytest.mark.parametrize("in_flight", [1, 3])
def test_so_many_run_and_the_others_wait_in_order(photo_search: FocusedSearch, in_flight: int) -> None:
    running, most, began = 0, 0, []
    lock, together = threading.Lock(), threading.Barrier(in_flight)
    caller: ContextVar[str] = ContextVar("caller", default="nobody")

    def work(number: int) -> str:
        nonlocal running, most
        with lock:
            began.append(number)
            running += 1
            most = max(most, running)
        together.wait(30)  # so many run at a time ...
        time.sleep(0.01)
        with lock:
            running -= 1
        return caller.get()

    async def use() -> list[str]:
        caller.set("a request")
        async with AsyncFocusedSearch(photo_search, in_flight=in_flight) as search:
            return await asyncio.gather(*(search.run(work, number) for number in range(12)))

    assert asyncio.run(use()) == ["a request"] * 12
    assert most == in_flight  # ... and not more
    assert in_flight > 1 or began == list(range(12))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("phs-search")]


def test_what_is_cancelled_gives_up_its_place(
    photo_search: FocusedSearch, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    encode = photo_search._encode
    monkeypatch.setattr(
        photo_search, "_encode", lambda queries, *args: (asked.append(queries), encode(queries, *args))[1]
    )
    gate = threading.Event()

    async def use() -> SearchResult:
        async with AsyncFocusedSearch(photo_search, in_flight=1) as search:
            first = asyncio.create_task(search.run(gate.wait, 30))
            waiting = [asyncio.create_task(search.search(path, PROMPT)) for path in photos[:10]]
            last = asyncio.create_task(search.search(photos[20], PROMPT, limit=3))
            await asyncio.sleep(0.1)
            # One that runs, and ten that wait; the caller is free at once.
            for task in (first, *waiting):
                task.cancel()
            outcomes = await asyncio.gather(first, *waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 11
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(search.search(photos[21]), 0.05)  # how a service bounds the wait
            assert not asked
            gate.set()
            return await last

    assert asyncio.run(use())[0].id == photos[20].name
    assert len(asked) == 1
