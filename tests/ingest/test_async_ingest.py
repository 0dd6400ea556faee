"""ingest_folder_async is ingest_folder, and stops cleanly where its task is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest

from phs_milvus import Encoder, FocusedCollection, ingest_folder_async
from phs_milvus.contract.errors import InvalidInput
from tests.ingest.support import MakeImages, check_complete, run


def test_it_reports_and_raises_as_the_blocking_form(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 20)

    async def use() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        report = await ingest_folder_async(root, collection, encoder, progress=False, batch_size=7)
        assert (report.encoded, report.failed_count) == (20, 0) and ticks > 3  # the loop was free meanwhile
        ticking.cancel()
        with pytest.raises(InvalidInput) as caught:
            await ingest_folder_async(root / "nowhere", collection, encoder)
        assert caught.value.field == "root"

    asyncio.run(use())
    check_complete(root, collection)


def test_cancelled_it_stores_what_is_in_flight_and_the_next_run_goes_on(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 400)

    async def use() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        task = asyncio.create_task(
            ingest_folder_async(
                root, collection, encoder, progress=lambda done, total: loop.call_soon_threadsafe(begun.set)
            )
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    until = time.monotonic() + 30
    while any(thread.name.startswith("phs-ingest") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    stored = collection.count()
    assert 1 <= stored < 400
    report = run(root, collection, encoder)
    assert (report.encoded, report.skipped_unchanged) == (400 - stored, stored)
    check_complete(root, collection)


def test_a_stop_that_several_share_is_nobody_s_to_set(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 400)
    stop = threading.Event()

    async def use() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        first = asyncio.create_task(
            ingest_folder_async(
                root, collection, encoder, stop=stop, progress=lambda done, of: loop.call_soon_threadsafe(begun.set)
            )
        )
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not stop.is_set() and collection.count() < 400
        report = await ingest_folder_async(
            root, collection, encoder, stop=stop, progress=lambda done, of: done >= 390 and stop.set()
        )
        assert report.encoded >= 1 and report.encoded + report.skipped_unchanged >= 390
        stopped = await ingest_folder_async(root, collection, encoder, stop=stop, progress=False)
        assert stopped.found == 0

    asyncio.run(use())


def test_stopped_it_reports_and_prunes_nothing(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 100)
    run(root, collection, encoder)
    paths[0].unlink()
    for path in make_images(root.parent / "others", 100, seed=3)[1:]:
        path.rename(root / path.name)
    stop = threading.Event()
    report = run(root, collection, encoder, prune=True, stop=stop, progress=lambda done, total: stop.set())
    assert report.pruned == 0 and 1 <= report.changed < 99 and collection.count() == 100
    seen: list[int] = []
    unchanged = run(root, collection, encoder, stop=stop, progress=lambda done, total: seen.append(done))
    assert unchanged.found == 0 and not seen  # stopped before it began
    report = run(root, collection, encoder, prune=True)
    assert report.pruned == 1 and report.skipped_unchanged >= 1
    check_complete(root, collection)
