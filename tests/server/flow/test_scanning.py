"""Scans in the pipeline: others' requests run between their steps, and they end when nobody waits for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phs_milvus import Encoder
from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, InvalidInput, ServerDraining
from phs_milvus.contract.scanning import PackedKeys, ScanInputs, Scanned
from phs_milvus.contract.types import RerankInputs
from phs_server.config import Settings
from phs_server.flow.pipeline import Pipeline
from tests.server.edge.states_files import states, write_states
from tests.server.edge.support import HEADS, HIDDEN

ROWS = 20_000
# A whole scan then takes two seconds, in twenty steps.
SECONDS_A_ROW = 1e-4
RNG = np.random.default_rng(0)


def inputs(queries: int = 1, **changes: Any) -> ScanInputs:
    embeddings = RNG.standard_normal((queries, HIDDEN)).astype(np.float32)
    weights = RNG.random((queries, HEADS)).astype(np.float32)
    return ScanInputs(embeddings, weights, 5, None, None)._replace(**changes)


@pytest.fixture
def slow(tiny_model: Path, encoder: Encoder, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with ROWS states and an engine that takes its time for them; `slow.steps` has the rows of each."""
    threads = torch.get_num_threads()
    some = states(500)[np.arange(ROWS) % 500]
    file = write_states(tmp_path / "x.states", encoder.info.fingerprint, range(ROWS), some, batch=7000)
    pipeline = Pipeline(Settings(model=str(tiny_model), precision="float32", states=str(file)))
    engine = pipeline._engines[0]
    scan, steps = engine.scan, []

    def slowly(embeddings: Any, weights: Any, found: Any, check: Callable[[], None]) -> Any:
        steps.append(len(found))
        until = time.monotonic() + SECONDS_A_ROW * len(found)
        while time.monotonic() < until:
            check()
            time.sleep(0.005)
        return scan(embeddings, weights, found, check)

    engine.scan = slowly  # type: ignore[method-assign]
    pipeline.steps = steps  # type: ignore[attr-defined]
    yield pipeline
    pipeline.close(10)
    torch.set_num_threads(threads)


async def scanned(
    pipeline: Pipeline, asked: ScanInputs, timeout: float | None = 60, caller: str = "somebody"
) -> Scanned:
    assert pipeline.scans is not None
    with pipeline.scans.opened(asked, caller) as scan:
        return await pipeline.scan(scan, timeout=timeout)


async def begun(pipeline: Pipeline, count: int = 1) -> None:
    while len(pipeline.steps) < count:  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)


def test_a_rerank_does_not_wait_for_a_scan(slow: Pipeline) -> None:
    async def run() -> None:
        scanning = asyncio.ensure_future(scanned(slow, inputs()))
        asked = inputs()
        for turn in range(1, 4):
            await begun(slow, 2 * turn)
            await slow.rerank(RerankInputs(asked.embeddings, asked.head_weights, states(3)), timeout=20)
            assert not scanning.done()
        assert (await scanning).scored == ROWS == sum(slow.steps)
        assert max(slow.steps) < ROWS / 5

    asyncio.run(run())


def test_scans_take_turns_and_are_few(slow: Pipeline) -> None:
    async def run() -> None:
        few = inputs(keys=PackedKeys(np.arange(9), b"", np.empty(0, np.uint32)))
        every = [asyncio.ensure_future(scanned(slow, inputs())) for _ in range(8)]
        await begun(slow, 2)
        with pytest.raises(EncoderBusy, match="8 for one caller"):
            await scanned(slow, few)
        # Another caller's turn comes after one step of each, and they have one place in the queue.
        assert (await scanned(slow, few, caller="another")).scored == 9
        assert not any(one.done() for one in every) and slow.queue_depths["rerank"] <= 1
        every += [asyncio.ensure_future(scanned(slow, inputs(), caller=f"{n}")) for n in range(8)]
        await asyncio.sleep(0.1)
        with pytest.raises(EncoderBusy, match="16 scans are in progress"):
            await scanned(slow, few, caller="the last")
        for one in every:
            one.cancel()
        await asyncio.gather(*every, return_exceptions=True)
        await scanned(slow, few)

    asyncio.run(run())


def test_a_scan_that_is_cancelled_ends(slow: Pipeline) -> None:
    async def run() -> None:
        scanning = asyncio.ensure_future(scanned(slow, inputs()))
        await begun(slow, 3)
        scanning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scanning
        # A rerank comes to its turn at once, and no step after it.
        asked = inputs()
        await slow.rerank(RerankInputs(asked.embeddings, asked.head_weights, states(3)), timeout=20)
        count = len(slow.steps)
        await asyncio.sleep(0.3)
        assert len(slow.steps) == count and sum(slow.steps) < ROWS and slow.queue_depths["rerank"] == 0

    asyncio.run(run())


def test_a_deadline_in_its_middle_ends_it(slow: Pipeline) -> None:
    with pytest.raises(DeadlineExceeded):
        asyncio.run(scanned(slow, inputs(), timeout=0.5))
    assert sum(slow.steps) < ROWS


def test_the_end_of_the_server_ends_it(slow: Pipeline) -> None:
    async def run() -> None:
        scanning = asyncio.ensure_future(scanned(slow, inputs()))
        await begun(slow, 2)
        await asyncio.to_thread(slow.close, 0)
        with pytest.raises(ServerDraining):
            await scanning

    asyncio.run(run())


def test_the_answer_must_fit_into_a_message(slow: Pipeline) -> None:
    shares = np.ones((64, 64), np.float32)
    with pytest.raises(InvalidInput, match="makes an answer of up to") as caught:
        asyncio.run(scanned(slow, inputs(64, limit=16_384, shares=shares)))
    assert caught.value.field == "limit" and not slow.steps


def test_steps_are_no_larger_than_a_rerank_may_be(slow: Pipeline) -> None:
    """64 distinct weights make 64 readouts of each row."""
    few = PackedKeys(np.arange(3000), b"", np.empty(0, np.uint32))
    assert asyncio.run(scanned(slow, inputs(64, keys=few))).scored == 3000
    assert max(slow.steps) <= 1024
