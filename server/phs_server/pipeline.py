"""Decode threads, batcher and engine as one asynchronous call. Knows nothing of gRPC."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from phs_milvus.errors import DeadlineExceeded, EncoderBusy, EncoderUnavailable, InvalidInput, ModelError
from phs_milvus.types import (
    Encoding,
    Explanation,
    Float16Array,
    Float32Array,
    Focus,
    MaskRuns,
    ModelInfo,
    Timings,
)
from phs_server import checkpoint
from phs_server.batcher import Batcher, Closed, Completed, Expired, QueueFull
from phs_server.config import Settings
from phs_server.encoder import EncodedBatch, FocusEngine, resolve_device
from phs_server.focus import attention_change, prepare_focused
from phs_server.head_selection import default_head_count
from phs_server.preprocess import Prepared, prepare_image

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RerankInputs = tuple[Float32Array, Float32Array, Float16Array]

# Rerank requests waiting for the engine; each may hold one message of states.
_RERANK_QUEUE = 16


class Pipeline:
    """A loaded model behind queues. Create it off the event loop, since loading takes seconds; use it from one loop.

    Attributes:
        info: what GetModelInfo answers.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        loaded = checkpoint.load(settings.model, settings.image_size or None)
        self._preprocessing = loaded.preprocessing
        self._limits = settings.limits
        self._engine = FocusEngine(loaded, resolve_device(settings.device), settings.precision)
        self.info = _describe(loaded, self._engine, settings)
        self._batch_limit = settings.max_batch_size
        self._slots = asyncio.Semaphore(settings.max_queue_size)
        self._slot_count = settings.max_queue_size
        workers = settings.decode_threads or max(2, os.cpu_count() or 2)
        self._decoders = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._encodes: Batcher[Prepared, _Row] = Batcher(
            self._run_batch,
            max_batch_size=settings.max_batch_size,
            max_delay_ms=settings.max_queue_delay_ms,
            max_queue_size=settings.max_queue_size,
            name="encode",
        )
        self._reranks: Batcher[RerankInputs, Float32Array] = Batcher(
            lambda batch: [self._engine.rerank(*inputs) for inputs in batch],
            max_batch_size=1,
            max_delay_ms=0,
            max_queue_size=_RERANK_QUEUE,
            name="rerank",
        )

    def warm_up(self) -> None:
        """Runs the smallest and the largest batch once, so that the first request pays for no lazy set-up."""
        side, grid = self._preprocessing.image_size, self._preprocessing.grid
        for size in {1, self._batch_limit}:
            self._engine.encode(
                np.zeros((size, 3, side, side), np.uint8),
                np.zeros((size, grid * grid), np.float32),
                np.zeros(size, np.int64),
            )

    async def encode(
        self,
        image: bytes,
        mask: MaskRuns | None,
        focus: Focus,
        *,
        timeout: float | None = None,
        wait: bool = False,
    ) -> Encoding:
        """Encodes one image; see `Encoding` for shapes.

        Args:
            timeout: seconds left for this item; None: no limit.
            wait: wait for room in the queue instead of raising EncoderBusy; for bulk streams.

        Raises:
            ImageError, PromptError: the item itself is wrong.
            EncoderBusy, DeadlineExceeded, EncoderUnavailable: as their names say.
        """
        prepared, done, decode_ms = await self._run(image, mask, focus, timeout, wait)
        row = done.result
        return Encoding(
            embedding=row.embedding,
            state=row.state,
            head_scores=None if mask is None else row.scores,
            head_weights=row.weights,
            timings=Timings(decode_ms, done.queue_ms, done.compute_ms),
            width=prepared.width,
            height=prepared.height,
            attention=self._on_grid(row.attention),
        )

    async def explain(
        self, image: bytes, mask: MaskRuns | None, focus: Focus, *, timeout: float | None = None
    ) -> Explanation:
        """What each head looks at in one image; raises as `encode` does."""
        prepared, done, _ = await self._run(image, mask, focus, timeout, wait=False)
        row = done.result
        return Explanation(
            attention=self._on_grid(row.attention),
            mask=None if mask is None else self._on_grid(prepared.mask)[0],
            head_scores=None if mask is None else row.scores,
            head_weights=row.weights,
            width=prepared.width,
            height=prepared.height,
            region=prepared.region,
        )

    def _on_grid(self, values: Float32Array) -> Float32Array:
        """[..., N] -> [any, grid, grid]."""
        return values.reshape(-1, self._preprocessing.grid, self._preprocessing.grid)

    async def rerank(self, inputs: RerankInputs, *, timeout: float | None = None) -> Float32Array:
        """Scores float32 [Q, K] of (embeddings [Q, E], head weights [Q, H], states [K, 2, D])."""
        return (await _answered(lambda: self._reranks.submit(inputs, _deadline(timeout)))).result

    @property
    def healthy(self) -> bool:
        """Whether the threads that run the model are alive."""
        return self._encodes.alive and self._reranks.alive

    def close(self, timeout: float) -> None:
        """Finishes queued work for up to `timeout` seconds, then fails what is left."""
        self._encodes.close(timeout)
        self._reranks.close(timeout)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self, image: bytes, mask: MaskRuns | None, focus: Focus, timeout: float | None, wait: bool
    ) -> tuple[Prepared, Completed[_Row], float]:
        deadline = _deadline(timeout)
        if self._slots.locked() and not wait:
            raise EncoderBusy(f"{self._slot_count} images are in progress, the limit; try again in a moment")
        async with self._slots:
            started = time.monotonic()
            loop = asyncio.get_running_loop()
            prepared = await loop.run_in_executor(self._decoders, self._prepare, image, mask, focus)
            decode_ms = (time.monotonic() - started) * 1000
            done = await _answered(lambda: self._encodes.submit(prepared, deadline))
        return prepared, done, decode_ms

    def _prepare(self, image: bytes, mask: MaskRuns | None, focus: Focus) -> Prepared:
        """On a decode thread."""
        shape = self._preprocessing
        if mask is None:
            pixels, width, height = prepare_image(image, shape.image_size, shape.resample, self._limits)
            return Prepared(pixels, np.zeros(shape.grid**2, np.float32), 0, width, height, (0, 0, width, height))
        if focus.fovea and not self._engine.has_fovea:
            raise InvalidInput(f"fovea is not for {self.info.model_type} models in this transformers release", "focus")
        return prepare_focused(
            image,
            mask,
            focus,
            focus.heads or self.info.default_heads,
            image_size=shape.image_size,
            resample=shape.resample,
            grid=shape.grid,
            limits=self._limits,
        )

    def _run_batch(self, items: Sequence[Prepared]) -> list[_Row]:
        """On the encode thread."""
        batch = self._engine.encode(
            np.stack([item.pixels for item in items]),
            np.stack([item.mask for item in items]),
            np.array([item.heads for item in items], np.int64),
            attention_change(items),
        )
        return [_Row(batch, index) for index in range(len(items))]


class _Row:
    """One image's part of a batch."""

    def __init__(self, batch: EncodedBatch, index: int) -> None:
        self.embedding = batch.embeddings[index]
        self.state = batch.states[index]
        self.scores = batch.scores[index]
        self.weights = batch.weights[index]
        self.attention = batch.attention[index]


def _describe(loaded: checkpoint.Checkpoint, engine: FocusEngine, settings: Settings) -> ModelInfo:
    heads = loaded.backbone.heads
    if settings.default_heads > heads:
        raise ModelError(f"default_heads is {settings.default_heads}, but model '{loaded.model_id}' has {heads} heads")
    return ModelInfo(
        model_id=loaded.model_id,
        model_type=loaded.model_type,
        fingerprint=loaded.fingerprint,
        heads=heads,
        hidden_size=loaded.backbone.hidden_size,
        embedding_size=loaded.backbone.readout.embedding_size,
        grid_height=loaded.preprocessing.grid,
        grid_width=loaded.preprocessing.grid,
        image_size=loaded.preprocessing.image_size,
        default_heads=settings.default_heads or default_head_count(heads),
        precision=engine.precision,
        limits=settings.limits,
    )


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


async def _answered(submit: Callable[[], Future[Result]]) -> Result:
    """Submits to a batcher and awaits the answer, with the batcher's errors as ours."""
    try:
        answer: Awaitable[Result] = asyncio.wrap_future(submit())
        return await answer
    except QueueFull as error:
        raise EncoderBusy(str(error)) from None
    except Expired as error:
        raise DeadlineExceeded(str(error)) from None
    except Closed as error:
        raise EncoderUnavailable(str(error)) from None
