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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.errors import DeadlineExceeded, InvalidInput, ModelError, ServerDraining
from phs_milvus.contract.location import Location
from phs_milvus.contract.types import Encoding, Float32Array, RerankInputs, States, Timings
from phs_server.config import Settings
from phs_server.flow.answered import answered, deadline_of
from phs_server.flow.batcher import Batcher, Completed, Priority
from phs_server.flow.boxes import boxes
from phs_server.flow.describe import describe
from phs_server.flow.held import HeldPictures
from phs_server.flow.preprocess import Decode, ExpensivePicture
from phs_server.flow.runner import ViewRunner
from phs_server.flow.views import Asked, View, views_of
from phs_server.model import checkpoint
from phs_server.model.batch import Encoded
from phs_server.model.devices import available_cores, resolve_devices
from phs_server.model.engine import FocusEngine

log = logging.getLogger(__name__)

# What to compute of stored states, given a function that ends it by raising.
_OfStates = Callable[[FocusEngine, Callable[[], None]], Float32Array]

# Requests about states waiting for the engine; each may hold one message of them.
_STATES_QUEUE = 16
# That a readout which was told to stop may take to do so: it does between two chunks.
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
        self.info = describe(loaded, self._engines[0], settings)
        self._batch_limit = settings.max_batch_size
        self._closing = threading.Event()
        self._held = HeldPictures(settings.max_held_bytes)
        self._runner = ViewRunner(self._held, loaded.backbone.heads, loaded.preprocessing.grid**2)
        bounds = {"max_queue_size": settings.max_queue_size, "max_queue_bytes": settings.max_in_flight_bytes}
        workers = settings.decode_threads or (max(1, cores - 1) if on_gpu else max(1, cores // 4))
        self._decoders = [Decoder() for _ in range(workers + max(1, workers // 4))]
        usual, expensive = self._decoders[:workers], self._decoders[workers:]
        self._decodes: Batcher[Asked, list[View]] = Batcher(
            *(partial(self._views, self._decode(decoder, take_expensive=False)) for decoder in usual),
            max_batch_size=1,
            max_delay_ms=0,
            **bounds,
            name="decode",
        )
        # A line of their own for pictures that cost as much as many usual ones.
        self._expensive_decodes: Batcher[Asked, list[View]] = Batcher(
            *(partial(self._views, self._decode(decoder, take_expensive=True)) for decoder in expensive),
            max_batch_size=1,
            max_delay_ms=0,
            **bounds,
            name="decode-expensive",
        )
        # Two threads per GPU: one prepares and collects a batch while the GPU computes the other's.
        threads_per_engine = 2 if on_gpu else 1
        self._encodes: Batcher[View, list[Any]] = Batcher(
            *(partial(self._run_batch, engine) for engine in self._engines for _ in range(threads_per_engine)),
            max_batch_size=settings.max_batch_size,
            max_delay_ms=settings.max_queue_delay_ms,
            **bounds,
            name="encode",
        )
        self._of_states: Batcher[tuple[_OfStates, Callable[[], None]], Float32Array] = Batcher(
            *(partial(_compute, engine) for engine in self._engines),
            max_batch_size=1,
            max_delay_ms=0,
            max_queue_size=_STATES_QUEUE,
            max_queue_bytes=_STATES_QUEUE * settings.max_message_bytes,
            name="states",
        )

    def warm_up(self, single: bool = False) -> None:
        """Runs the batch sizes to come once on every device, and starts the processes that decode, so that the first
        request pays for no lazy set-up.

        Args:
            single: only for one picture at a time; what else is needed is set up when it is.
        """
        decoders = self._decoders[: 1 if single else None]
        with ThreadPoolExecutor(len(decoders)) as pool:  # they start while the model runs
            starting = [pool.submit(decoder.start) for decoder in decoders]
            for engine in self._engines:
                engine.warm_up(1 if single else self._batch_limit)
        for start in starting:
            start.result()

    async def encode(self, asked: Asked, *, timeout: float | None = None, bulk: bool = False) -> list[Encoding]:
        """One Encoding for each of the request's pointings; see `Encoding` for shapes.

        Args:
            timeout: seconds left for this request; None: no limit.
            bulk: let interactive requests pass.

        Raises:
            ImageError, PromptError: the request itself is wrong.
            PictureNotHeld: it names a picture by its digest, and what it needs of that is not held.
            ModelError: what the model gives is not finite.
            EncoderBusy, DeadlineExceeded, ServerDraining: as their names say.
        """
        decoded, done = await self._run(asked, timeout, bulk)
        encodings: dict[int, Encoding] = {}
        for view, completed in zip(decoded.result, done, strict=True):
            timings = Timings(decoded.compute_ms, decoded.queue_ms + completed.queue_ms, completed.compute_ms)
            for place, prompt, (encoded, feature) in zip(view.places, view.prompts, completed.result, strict=True):
                self._check_finite(encoded)
                encodings[place] = Encoding(
                    embedding=encoded.embedding,
                    state=encoded.state,
                    head_scores=None if prompt.mask is None else encoded.head_scores,
                    head_weights=encoded.head_weights,
                    timings=timings,
                    width=view.width,
                    height=view.height,
                    attention=self._on_grid(encoded.attention),
                    mask=None if prompt.mask is None else self._on_grid(prompt.mask)[0],
                    region=view.region,
                    region_feature=None if prompt.mask is None else feature,
                )
        return [encodings[place] for place in range(len(encodings))]

    async def locate(self, asked: Asked, *, timeout: float | None = None, bulk: bool = False) -> Location:
        """Where in the image `asked.target` is; takes and raises what `encode` does."""
        assert asked.target is not None
        decoded, (done,) = await self._run(asked, timeout, bulk)
        (view,), (located,) = decoded.result, done.result
        for part in located:
            if not np.isfinite(part).all():
                raise ModelError(f"what the model in {self.info.precision} gives for this image is not finite")
        grid = self._preprocessing.grid
        row, column = divmod(int(located.evidence.argmax()), grid)
        return Location(
            evidence=self._on_grid(located.evidence)[0],
            peak=((column + 0.5) * view.width / grid, (row + 0.5) * view.height / grid),
            # Milliseconds for a fine grid, which the event loop has not.
            boxes=await asyncio.to_thread(
                boxes,
                *(self._on_grid(located.extent)[0], view.width, view.height),
                *(asked.target.limit, asked.target.threshold),
            ),
            score=float(located.score),
            match=float(located.match),
            width=view.width,
            height=view.height,
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
        size = sum(part.nbytes for part in inputs)
        return await self._computed(lambda engine, check: engine.rerank(inputs, check), size, timeout)

    async def read_out(self, states: States, weights: Float32Array, *, timeout: float | None = None) -> Float32Array:
        """Embeddings float32 [K, E] of K states under head weights [K, H] or [1, H]; raises as `rerank`."""
        size = states.nbytes + weights.nbytes
        return await self._computed(lambda engine, check: engine.read_out(states, weights, check), size, timeout)

    async def _computed(self, compute: _OfStates, size: int, timeout: float | None) -> Float32Array:
        deadline, ended = deadline_of(timeout), threading.Event()

        def check() -> None:
            if self._closing.is_set():
                raise ServerDraining("the server is shutting down")
            if ended.is_set() or (deadline is not None and time.monotonic() > deadline):
                raise DeadlineExceeded("the deadline passed, or the call was cancelled, while states were read out")

        try:
            return (await answered(self._of_states, (compute, check), deadline, size=size)).result
        finally:
            ended.set()

    @property
    def healthy(self) -> bool:
        """Whether the threads that decode and that run the model are alive."""
        return all(batcher.alive for batcher in self._batchers)

    @property
    def queue_depths(self) -> dict[str, int]:
        """Items that wait: images to be decoded, decoded images for a batch, requests about states."""
        decode = self._decodes.depth + self._expensive_decodes.depth
        return {"decode": decode, "encode": self._encodes.depth, "rerank": self._of_states.depth}

    def close(self, timeout: float) -> None:
        """Finishes queued work for up to `timeout` seconds, then stops a running readout and fails what is left."""
        until = time.monotonic() + timeout
        for batcher in self._batchers:
            batcher.close(max(0.0, until - time.monotonic()))
        for decoder in self._decoders:
            decoder.close()
        self._closing.set()
        self._of_states.close(_STOP_SECONDS)

    @property
    def _batchers(self) -> tuple[Batcher, ...]:
        return self._decodes, self._expensive_decodes, self._encodes, self._of_states

    async def _run(
        self, asked: Asked, timeout: float | None, bulk: bool
    ) -> tuple[Completed[list[View]], list[Completed[list[Any]]]]:
        """The request's views, and what the model gives for each of them."""
        deadline = deadline_of(timeout)
        priority = Priority.BULK if bulk else Priority.INTERACTIVE
        decoded = await self._decoded(asked, deadline, priority)
        parts = [
            answered(
                self._encodes,
                view,
                deadline,
                priority=priority,
                # One view that changes the trunk would take all of its batch off the recorded graphs. What looks for
                # the same thing is located together.
                # And what is held is answered at once, not with pictures that take a thousand times longer.
                key=(view.is_foveal, view.tokens is None, id(view.target)),
                size=view.nbytes,
                waits=view.tokens is None,
            )
            for view in decoded.result
        ]
        return decoded, list(await asyncio.gather(*parts)) if len(parts) > 1 else [await parts[0]]

    def _check_finite(self, encoded: Encoded) -> None:
        """The last look at what is answered. Attention that is not finite shows in the head scores."""
        for name in ("embedding", "state", "head_scores"):
            if not np.isfinite(getattr(encoded, name)).all():
                raise ModelError(
                    f"the model gives a {name} that is not finite for this image in {self.info.precision}; "
                    "try --precision float32"
                )

    async def _decoded(self, asked: Asked, deadline: float | None, priority: Priority) -> Completed[list[View]]:
        size = len(asked.image)
        with suppress(ExpensivePicture):
            return await answered(self._decodes, asked, deadline, priority=priority, size=size)
        return await answered(self._expensive_decodes, asked, deadline, priority=priority, size=size)

    def _decode(self, decoder: Decoder, take_expensive: bool) -> Decode:
        shape = self._preprocessing
        return Decode(shape.image_size, shape.resample, self._limits, decoder, take_expensive)

    def _views(self, decode: Decode, items: Sequence[Asked]) -> list[list[View]]:
        """On a decode thread. Raises ExpensivePicture where the picture is for the other line."""
        (asked,) = items
        if not self._held.limit:  # nor is anything hashed or kept for it
            asked = dataclasses.replace(asked, owner=None)
        foveal = any(pointing.mask is not None and pointing.focus.fovea for pointing in asked.pointings)
        if foveal and not self._engines[0].has_fovea:
            raise InvalidInput(f"fovea is not for {self.info.model_type} models in this transformers release", "focus")
        return [
            views_of(
                asked,
                grid=self._preprocessing.grid,
                head_count=lambda focus: focus.head_count(self.info.heads, self.info.default_heads),
                decode=decode,
                held=self._held,
            )
        ]

    def _run_batch(self, engine: FocusEngine, items: Sequence[View]) -> list[list[Any]]:
        """On an encode thread: for each view what `ViewRunner` gives for it."""
        self.observe_batch(len(items))
        return self._runner.run(engine, items)


def _compute(engine: FocusEngine, items: Sequence[tuple[_OfStates, Callable[[], None]]]) -> list[Float32Array]:
    """On a thread for states."""
    return [compute(engine, check) for compute, check in items]
