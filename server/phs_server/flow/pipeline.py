"""Decoding, batching and the engines as one asynchronous call. Knows nothing of gRPC.

    decode queue -> decode threads, a child process each -> encode queue -> one engine per device

Both queues let interactive items overtake bulk. Threads on N cores: on a CPU the model gets N, since its parallel
loops run in lockstep and leave gaps, and decoding N/4, which suffices because an image costs several times more to
encode than to decode; on a GPU decoding gets N-1 and the model's CPU side 1.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, InvalidInput, ModelError, ServerDraining
from phs_milvus.contract.types import (
    Encoding,
    Explanation,
    Float32Array,
    Focus,
    MaskRuns,
    ModelInfo,
    RerankInputs,
    Timings,
)
from phs_server.config import Settings
from phs_server.flow.batcher import Batcher, Closed, Completed, Expired, Priority, QueueFull
from phs_server.flow.focus import prepare_focused, prompts_of
from phs_server.flow.preprocess import Decode, ExpensivePicture, Prepared, checked_header
from phs_server.model import checkpoint
from phs_server.model.batch import Encoded
from phs_server.model.engine import FocusEngine, available_cores, resolve_devices
from phs_server.model.head_selection import default_head_count

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_Undecoded = tuple[bytes, MaskRuns | None, Focus]
_Rerank = tuple[RerankInputs, Callable[[], None]]

# Rerank requests waiting for the engine; each may hold one message of states.
_RERANK_QUEUE = 16
# That a rerank which was told to stop may take to do so: it does between two chunks.
_STOP_SECONDS = 1.0


class Pipeline:
    """A loaded model behind queues. Create it off the event loop, since loading takes seconds; use it from one loop.

    Attributes:
        info: what GetModelInfo answers.
        observe_batch: called on an encode thread with the number of images in each batch.
    """

    observe_batch: Callable[[int], None] = staticmethod(lambda size: None)

    def __init__(self, settings: Settings) -> None:
        devices = resolve_devices(settings.devices)
        on_gpu = devices[0].startswith("cuda")
        cores = available_cores()
        torch.set_num_threads(settings.threads or (1 if on_gpu else cores))
        loaded = checkpoint.load(settings.model, settings.image_size or None)
        self._preprocessing = loaded.preprocessing
        self._limits = settings.limits
        backbones = [loaded.backbone, *(copy.deepcopy(loaded.backbone) for _ in devices[1:])]
        self._engines = [
            FocusEngine(
                dataclasses.replace(loaded, backbone=backbone),
                device,
                settings.precision,
                settings.gpu_mode,
                settings.cpu_kernels,
            )
            for backbone, device in zip(backbones, devices, strict=True)
        ]
        self.info = _describe(loaded, self._engines[0], settings)
        self._batch_limit = settings.max_batch_size
        self._closing = threading.Event()
        bounds = {"max_queue_size": settings.max_queue_size, "max_queue_bytes": settings.max_in_flight_bytes}
        workers = settings.decode_threads or (max(1, cores - 1) if on_gpu else max(1, cores // 4))
        self._decoders = [Decoder() for _ in range(workers + max(1, workers // 4))]
        usual, expensive = self._decoders[:workers], self._decoders[workers:]
        self._decodes: Batcher[_Undecoded, Prepared] = Batcher(
            *(partial(self._prepare, self._decode(decoder, take_expensive=False)) for decoder in usual),
            max_batch_size=1,
            max_delay_ms=0,
            **bounds,
            name="decode",
        )
        # A line of their own for pictures that cost as much as many usual ones.
        self._expensive_decodes: Batcher[_Undecoded, Prepared] = Batcher(
            *(partial(self._prepare, self._decode(decoder, take_expensive=True)) for decoder in expensive),
            max_batch_size=1,
            max_delay_ms=0,
            **bounds,
            name="decode-expensive",
        )
        # Two threads per GPU: one prepares and collects a batch while the GPU computes the other's.
        threads_per_engine = 2 if on_gpu else 1
        self._encodes: Batcher[Prepared, Encoded] = Batcher(
            *(partial(self._run_batch, engine) for engine in self._engines for _ in range(threads_per_engine)),
            max_batch_size=settings.max_batch_size,
            max_delay_ms=settings.max_queue_delay_ms,
            **bounds,
            name="encode",
        )
        self._reranks: Batcher[_Rerank, Float32Array] = Batcher(
            *(partial(_rerank, engine) for engine in self._engines),
            max_batch_size=1,
            max_delay_ms=0,
            max_queue_size=_RERANK_QUEUE,
            max_queue_bytes=_RERANK_QUEUE * settings.max_message_bytes,
            name="rerank",
        )

    def warm_up(self, single: bool = False) -> None:
        """Runs the batch sizes to come once on every device, and starts the processes that decode, so that the first
        request pays for no lazy set-up.

        Args:
            single: only for one picture at a time; what else is needed is set up when it is.
        """
        for decoder in self._decoders[: 1 if single else None]:
            decoder.start()
        for engine in self._engines:
            engine.warm_up(1 if single else self._batch_limit)

    async def encode(
        self,
        image: bytes,
        mask: MaskRuns | None,
        focus: Focus,
        *,
        timeout: float | None = None,
        bulk: bool = False,
    ) -> Encoding:
        """Encodes one image; see `Encoding` for shapes.

        Args:
            timeout: seconds left for this item; None: no limit.
            bulk: let interactive items pass.

        Raises:
            ImageError, PromptError: the item itself is wrong.
            ModelError: what the model gives is not finite.
            EncoderBusy, DeadlineExceeded, ServerDraining: as their names say.
        """
        decoded, done = await self._run(image, mask, focus, timeout, bulk)
        prepared, encoded = decoded.result, done.result
        return Encoding(
            embedding=encoded.embedding,
            state=encoded.state,
            head_scores=None if mask is None else encoded.head_scores,
            head_weights=encoded.head_weights,
            timings=Timings(decoded.compute_ms, decoded.queue_ms + done.queue_ms, done.compute_ms),
            width=prepared.width,
            height=prepared.height,
            attention=self._on_grid(encoded.attention),
        )

    async def explain(
        self, image: bytes, mask: MaskRuns | None, focus: Focus, *, timeout: float | None = None
    ) -> Explanation:
        """What each head looks at in one image; raises as `encode` does."""
        decoded, done = await self._run(image, mask, focus, timeout, bulk=False)
        prepared, encoded = decoded.result, done.result
        return Explanation(
            attention=self._on_grid(encoded.attention),
            mask=None if prepared.mask is None else self._on_grid(prepared.mask)[0],
            head_scores=None if mask is None else encoded.head_scores,
            head_weights=encoded.head_weights,
            width=prepared.width,
            height=prepared.height,
            region=prepared.region,
        )

    def _on_grid(self, values: Float32Array) -> Float32Array:
        """[..., N] -> [any, grid, grid]."""
        return values.reshape(-1, self._preprocessing.grid, self._preprocessing.grid)

    async def rerank(self, inputs: RerankInputs, *, timeout: float | None = None) -> Float32Array:
        """Scores float32 [Q, K], cosine similarity. Its computation ends with the call, whatever ends that.

        Raises:
            InvalidInput: more readouts than one request may ask for.
            EncoderBusy, DeadlineExceeded, ServerDraining: as their names say.
        """
        deadline, ended = _deadline(timeout), threading.Event()

        def check() -> None:
            if self._closing.is_set():
                raise ServerDraining("the server is shutting down")
            if ended.is_set() or (deadline is not None and time.monotonic() > deadline):
                raise DeadlineExceeded("the deadline passed, or the call was cancelled, while states were reranked")

        try:
            size = sum(array.nbytes for array in inputs)
            return (await _answered(self._reranks, (inputs, check), deadline, size=size)).result
        finally:
            ended.set()

    @property
    def healthy(self) -> bool:
        """Whether the threads that decode and that run the model are alive."""
        return all(batcher.alive for batcher in self._batchers)

    @property
    def queue_depths(self) -> dict[str, int]:
        """Items that wait: images to be decoded, decoded images for a batch, reranks."""
        decode = self._decodes.depth + self._expensive_decodes.depth
        return {"decode": decode, "encode": self._encodes.depth, "rerank": self._reranks.depth}

    def close(self, timeout: float) -> None:
        """Finishes queued work for up to `timeout` seconds, then stops a running rerank and fails what is left."""
        until = time.monotonic() + timeout
        for batcher in self._batchers:
            batcher.close(max(0.0, until - time.monotonic()))
        for decoder in self._decoders:
            decoder.close()
        self._closing.set()
        self._reranks.close(_STOP_SECONDS)

    @property
    def _batchers(self) -> tuple[Batcher, ...]:
        return self._decodes, self._expensive_decodes, self._encodes, self._reranks

    async def _run(
        self, image: bytes, mask: MaskRuns | None, focus: Focus, timeout: float | None, bulk: bool
    ) -> tuple[Completed[Prepared], Completed[Encoded]]:
        deadline = _deadline(timeout)
        priority = Priority.BULK if bulk else Priority.INTERACTIVE
        decoded = await self._decoded((image, mask, focus), deadline, priority)
        prepared = decoded.result
        done = await _answered(
            self._encodes,
            prepared,
            deadline,
            priority=priority,
            # One item that changes the attention would take all of its batch off the recorded graphs.
            key=prepared.changes_attention,
            size=prepared.pixels.nbytes,
        )
        self._check_finite(done.result)
        return decoded, done

    def _check_finite(self, encoded: Encoded) -> None:
        """The last look at what is answered. Attention that is not finite shows in the head scores."""
        for name in ("embedding", "state", "head_scores"):
            if not np.isfinite(getattr(encoded, name)).all():
                raise ModelError(
                    f"the model gives a {name} that is not finite for this image in {self.info.precision}; "
                    "try --precision float32"
                )

    async def _decoded(self, item: _Undecoded, deadline: float | None, priority: Priority) -> Completed[Prepared]:
        size = len(item[0])
        with suppress(ExpensivePicture):
            return await _answered(self._decodes, item, deadline, priority=priority, size=size)
        return await _answered(self._expensive_decodes, item, deadline, priority=priority, size=size)

    def _decode(self, decoder: Decoder, take_expensive: bool) -> Decode:
        shape = self._preprocessing
        return Decode(shape.image_size, shape.resample, self._limits, decoder, take_expensive)

    def _prepare(self, decode: Decode, items: Sequence[_Undecoded]) -> list[Prepared]:
        """On a decode thread. Raises ExpensivePicture where the picture is for the other line."""
        ((image, mask, focus),) = items
        grid = self._preprocessing.grid
        if mask is None:
            header = checked_header(image, self._limits)
            width, height = header.upright_size
            return [Prepared(decode(header), width, height, region=(0, 0, width, height))]
        if focus.fovea and not self._engines[0].has_fovea:
            raise InvalidInput(f"fovea is not for {self.info.model_type} models in this transformers release", "focus")
        heads_on = focus.head_count(self.info.heads, self.info.default_heads)
        return [prepare_focused(image, mask, focus, heads_on, grid=grid, decode=decode)]

    def _run_batch(self, engine: FocusEngine, items: Sequence[Prepared]) -> list[Encoded]:
        """On an encode thread."""
        self.observe_batch(len(items))
        prompts = prompts_of(items, self.info.heads, self._preprocessing.grid**2)
        return engine.encode(np.stack([item.pixels for item in items]), prompts).rows()


def _rerank(engine: FocusEngine, items: Sequence[_Rerank]) -> list[Float32Array]:
    """On a rerank thread."""
    return [engine.rerank(inputs, check) for inputs, check in items]


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


async def _answered(
    batcher: Batcher[Item, Result], item: Item, deadline: float | None, **options: Any
) -> Completed[Result]:
    """Submits to a batcher and awaits the answer, with the batcher's errors as ours."""
    try:
        # The future in no variable: it holds its exception, whose traceback holds this frame, a circle that would keep
        # the request's bytes until Python collects its oldest generation, hundreds of MiB later.
        return await asyncio.wrap_future(batcher.submit(item, deadline, **options))
    except asyncio.CancelledError:
        batcher.drop_unwanted()  # what nobody waits for holds no memory until its turn
        raise
    except QueueFull as error:
        raise EncoderBusy(str(error)) from None
    except Expired as error:
        raise DeadlineExceeded(str(error)) from None
    except Closed as error:
        raise ServerDraining(str(error)) from None
