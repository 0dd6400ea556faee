"""The pipeline without gRPC: priorities through both queues, per-item errors, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phs_milvus.contract.errors import DeadlineExceeded, ImageError, PhsError, PromptError, ServerDraining
from phs_milvus.contract.types import Encoding, MaskRuns, RerankInputs
from phs_server.config import Settings
from phs_server.flow.pipeline import Pipeline
from tests.server.flow.support import encode

WAIT = 10.0


def jpeg(seed: int, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


Make = Callable[..., Pipeline]


@pytest.fixture
def make(tiny_model: Path) -> Iterator[Make]:
    made: list[Pipeline] = []

    def make(**settings: Any) -> Pipeline:
        defaults: dict[str, Any] = {"model": str(tiny_model), "precision": "float32", "max_queue_delay_ms": 0}
        made.append(Pipeline(Settings(**(defaults | settings))))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close(timeout=WAIT)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    """A pipeline sets torch's threads for its process; restored here for other tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Hold:
    """Stops a pipeline's engine at the next batch until released, and records the batch sizes."""

    def __init__(self, pipeline: Pipeline) -> None:
        engine = pipeline._engines[0]
        self._encode, self._go, self.entered = engine.encode, threading.Event(), threading.Event()
        self.sizes: list[int] = []
        engine.encode = self._held  # type: ignore[method-assign]

    def _held(self, pixels: np.ndarray, *rest: object) -> object:
        self.sizes.append(len(pixels))
        self.entered.set()
        assert self._go.wait(WAIT)
        return self._encode(pixels, *rest)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, WAIT)

    def release(self) -> None:
        self._go.set()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, WAIT)

    return asyncio.run(bounded())


async def settled(condition: Callable[[], bool]) -> None:
    """Waits until other threads have made `condition` true."""
    for _ in range(int(WAIT * 100)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never came true")


def test_batched_and_single_results_are_the_same(make: Make) -> None:
    pipeline = make(max_batch_size=8)
    pipeline.warm_up()

    async def scenario() -> None:
        alone = [await encode(pipeline, jpeg(seed)) for seed in range(8)]
        together = await asyncio.gather(*(encode(pipeline, jpeg(seed), bulk=True) for seed in range(8)))
        for one, other in zip(alone, together, strict=True):
            assert np.abs(one.embedding - other.embedding).max() < 1e-5
            assert one.timings.decode_ms > 0
        assert np.abs(alone[0].embedding - alone[1].embedding).max() > 0.01

    run(scenario())


def test_a_bad_item_fails_alone(make: Make) -> None:
    pipeline = make()
    mask = MaskRuns(9, 9, np.array([0, 81], np.uint32))

    async def scenario() -> list[object]:
        items = [(jpeg(1), None), (b"no image", None), (jpeg(2)[:200], None), (jpeg(3), mask), (jpeg(4), None)]
        calls = (encode(pipeline, *item, bulk=True) for item in items)
        return await asyncio.gather(*calls, return_exceptions=True)

    kinds = [type(result) for result in run(scenario())]
    assert kinds == [Encoding, ImageError, ImageError, PromptError, Encoding]
    assert pipeline.healthy


def test_a_picture_that_is_dear_to_decode_holds_up_no_other(make: Make) -> None:
    """It waits in a line of its own, whose child is stopped here."""
    pipeline = make(decode_threads=1)
    buffer = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(buffer, "PNG")
    expensive = pipeline._decoders[-1]
    expensive.start()

    async def scenario() -> None:
        os.kill(expensive._child.pid, signal.SIGSTOP)
        try:
            waiting = asyncio.create_task(encode(pipeline, buffer.getvalue()))
            for seed in range(3):
                assert (await encode(pipeline, jpeg(seed))).width == 64
            assert not waiting.done()
        finally:
            os.kill(expensive._child.pid, signal.SIGCONT)
        assert (await waiting).width == 5000

    run(scenario())


def test_a_child_that_crashes_costs_its_picture_only(make: Make) -> None:
    pipeline = make(decode_threads=1)
    child = pipeline._decoders[0]
    child.start()

    async def scenario() -> None:
        os.kill(child._child.pid, signal.SIGSTOP)
        lost = asyncio.create_task(encode(pipeline, jpeg(0)))
        await settled(lambda: child._in_use.locked())
        await asyncio.sleep(0.1)
        os.kill(child._child.pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="crashed its decoder"):
            await lost
        assert (await encode(pipeline, jpeg(1))).width == 64

    run(scenario())
    assert pipeline.healthy


def test_interactive_overtakes_a_bulk_backlog(make: Make) -> None:
    pipeline = make(max_batch_size=4, decode_threads=1)
    hold = Hold(pipeline)
    order: list[str] = []

    async def item(name: str, bulk: bool) -> None:
        await encode(pipeline, jpeg(0), bulk=bulk)
        order.append(name)

    async def scenario() -> None:
        bulk = [asyncio.create_task(item(f"bulk {index}", True)) for index in range(30)]
        await hold.reached()
        urgent = asyncio.create_task(item("urgent", False))
        await settled(lambda: sum(hold.sizes) + pipeline._encodes.depth == 31)
        hold.release()
        await asyncio.gather(urgent, *bulk)

    run(scenario())
    # At most the batch that was running and its own are before it.
    assert order.index("urgent") < 8
    assert sum(hold.sizes) == 31


def test_deadlines_and_cancellation_free_their_place(make: Make) -> None:
    pipeline = make(max_batch_size=1)
    hold = Hold(pipeline)

    async def scenario() -> None:
        first = asyncio.create_task(encode(pipeline, jpeg(0)))
        await hold.reached()
        gone = asyncio.create_task(encode(pipeline, jpeg(0)))
        await settled(lambda: pipeline._encodes.depth == 1)
        late = asyncio.create_task(encode(pipeline, jpeg(0), timeout=0.05))
        await asyncio.sleep(0.06)
        gone.cancel()
        hold.release()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
        with pytest.raises(asyncio.CancelledError):
            await gone

    run(scenario())
    assert hold.sizes == [1]


def test_closing_fails_what_cannot_be_finished(make: Make) -> None:
    pipeline = make(max_batch_size=1)
    hold = Hold(pipeline)

    async def scenario() -> None:
        first = asyncio.create_task(encode(pipeline, jpeg(0)))
        await hold.reached()
        second = asyncio.create_task(encode(pipeline, jpeg(0)))
        await settled(lambda: pipeline._encodes.depth == 1)
        await asyncio.to_thread(pipeline.close, 0.1)
        with pytest.raises(ServerDraining):
            await second
        hold.release()
        await first

    run(scenario())


class EndlessRerank:
    """Makes a pipeline's engine rerank until it is told to stop."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.started, self.stopped = threading.Event(), threading.Event()
        pipeline._engines[0].rerank = self._rerank  # type: ignore[method-assign]

    def _rerank(self, inputs: RerankInputs, check: Callable[[], None]) -> object:
        self.started.set()
        try:
            for _ in range(int(WAIT * 100)):
                check()
                time.sleep(0.01)
        except PhsError:
            self.stopped.set()
            raise
        raise AssertionError("was never stopped")


INPUTS = RerankInputs(np.ones((1, 48), np.float32), np.ones((1, 4), np.float32), np.ones((5, 2, 48), np.float16))


def test_a_rerank_stops_with_its_call_and_at_its_deadline(make: Make) -> None:
    pipeline = make()
    rerank = pipeline._engines[0].rerank
    endless = EndlessRerank(pipeline)

    async def scenario() -> None:
        gone = asyncio.create_task(pipeline.rerank(INPUTS))
        assert await asyncio.to_thread(endless.started.wait, WAIT)
        queued = asyncio.create_task(pipeline.rerank(INPUTS))
        await settled(lambda: pipeline.queue_depths["rerank"] == 1)
        queued.cancel()
        await settled(lambda: pipeline.queue_depths["rerank"] == 0)  # at once, not when its turn comes
        gone.cancel()
        assert await asyncio.to_thread(endless.stopped.wait, WAIT)
        with pytest.raises(DeadlineExceeded):
            await pipeline.rerank(INPUTS, timeout=0.05)
        pipeline._engines[0].rerank = rerank  # type: ignore[method-assign]
        assert (await pipeline.rerank(INPUTS)).shape == (1, 5)

    run(scenario())


def test_closing_stops_a_running_rerank(make: Make) -> None:
    pipeline = make()
    endless = EndlessRerank(pipeline)

    async def scenario() -> None:
        call = asyncio.create_task(pipeline.rerank(INPUTS))
        assert await asyncio.to_thread(endless.started.wait, WAIT)
        await asyncio.to_thread(pipeline.close, 0.05)
        with pytest.raises(ServerDraining, match="shutting down"):
            await call
        assert not pipeline.healthy  # its thread has ended: nothing computes any longer

    run(scenario())
