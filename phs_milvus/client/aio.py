"""`AsyncEncoder`: `Encoder` for asyncio, with the same methods as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import grpc
import numpy as np

from phs_milvus.client import answers, requests
from phs_milvus.client.aio_stream import AsyncStreamingEncoder
from phs_milvus.client.balance import ELSEWHERE
from phs_milvus.client.bulk import Window
from phs_milvus.client.feeds import EncodeFeed, Keyed, LazyImage, LocateFeed
from phs_milvus.client.pictures import Attempts, Delivery, Opened, on_pictures
from phs_milvus.client.requests import DEFAULT_IN_FLIGHT, EXPLAINED, Aim, Outputs
from phs_milvus.contract import telemetry
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage, ImageSource, load_image
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.scanning import Key, Scanned
from phs_milvus.contract.types import Encoding, Explanation, Float32Array, Focus, ModelInfo, States
from phs_milvus.pointing.prompts import Prompt

Mark = TypeVar("Mark")


class AsyncEncoder(AsyncStreamingEncoder):
    """`Encoder` for asyncio: the same arguments, results and errors. Create and use it on one event loop."""

    _insecure_channel = staticmethod(grpc.aio.insecure_channel)
    _secure_channel = staticmethod(grpc.aio.secure_channel)

    async def fetch_info(self, *, timeout: float | None = None) -> ModelInfo:
        """See `Encoder.fetch_info`."""
        return self._learn(await self._anywhere("GetModelInfo", pb.GetModelInfoRequest(), timeout or self._timeout))

    async def _known_info(self) -> ModelInfo:
        """The server's model, fetched on first use."""
        return self._info or await self.fetch_info()

    async def open(self, image: ImageSource) -> AsyncPicture:
        """See `Encoder.open`. Paths are read on a thread."""
        source = await asyncio.to_thread(load_image, image)
        return AsyncPicture(source.data, source.width, source.height, source.path, encoder=self)

    async def encode(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> Encoding:
        """See `Encoder.encode`. Paths are read on a thread."""
        source = await asyncio.to_thread(load_image, image)
        return (await self._encode(source, [Aim(prompt, focus)], outputs, timeout))[0]

    async def encode_prompts(
        self,
        image: ImageSource,
        prompts: Sequence[Prompt | None],
        *,
        focus: Focus | Sequence[Focus] = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> list[Encoding]:
        """See `Encoder.encode_prompts`."""
        aims = requests.aims_of(prompts, focus)
        source = await asyncio.to_thread(load_image, image)
        encodings: list[Encoding] = []
        most = requests.most_prompts(source)
        if len(aims) > most and not isinstance(source, Opened):
            source = await self.open(source)  # whose bytes need not go with every request
        for start in range(0, len(aims), most):
            encodings += await self._encode(source, aims[start : start + most], outputs, timeout)
        return encodings

    @overload
    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: None = None,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncGenerator[Encoding | PhsError, None]: ...

    @overload
    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: Iterable[Mark],
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncGenerator[tuple[Mark, Encoding | PhsError], None]: ...

    async def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: Iterable[Any] | None = None,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncGenerator[Any, None]:
        """See `Encoder.encode_many`. `images` is read on a thread, image by image."""
        rows = requests.rows(images, prompts, keys)
        feed = EncodeFeed((Keyed(key, image, [Aim(prompt, focus)]) for image, prompt, key in rows), outputs)
        results = self._streamed(feed, Window(in_flight), timeout)
        async with aclosing(results):
            async for key, found in results:
                result = found if isinstance(found, PhsError) else found[0]
                yield result if keys is None else (key, result)

    async def encode_aims(
        self,
        items: Iterable[tuple[ImageSource, Sequence[Aim]]],
        *,
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncGenerator[list[Encoding] | PhsError, None]:
        """See `Encoder.encode_aims`."""
        feed = EncodeFeed((Keyed(None, image, aims) for image, aims in items), outputs)
        results = self._streamed(feed, Window(in_flight), timeout)
        async with aclosing(results):
            async for _, result in results:
                yield result

    async def locate(
        self,
        target: LocateTarget,
        images: Iterable[LazyImage],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncGenerator[Location | PhsError, None]:
        """See `Encoder.locate`."""
        feed = LocateFeed(images, target, self._expected)
        results = self._streamed(feed, Window(in_flight), timeout)
        async with aclosing(results):
            async for _, result in results:
                yield result

    async def readout(
        self, states: States, head_weights: Float32Array, *, timeout: float | None = None
    ) -> Float32Array:
        """See `Encoder.readout`."""
        parts, left = [], self._deadline_of_parts(timeout)
        info = await self._known_info()
        states = requests.sendable(states, info)
        for request in requests.readout_requests(states, head_weights, self._expected, info):
            answer = await self._anywhere("Readout", request, left())
            parts.append(answers.embeddings(answer, request, info, self.address))
        return np.concatenate(parts)

    async def rerank(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        states: States,
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """See `Encoder.rerank`."""
        left = self._deadline_of_parts(timeout)
        if isinstance(states, Int8States):
            states = requests.sendable(states, await self._known_info())
        scores, messages = requests.rerank_requests(embeddings, head_weights, states, self._expected, self._limits)
        for block, request in messages:
            answer = await self._anywhere("Rerank", request, left())
            scores[block] = answers.scores(answer, request, self.address)
        return scores

    async def scan(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        *,
        limit: int = 10,
        keys: Sequence[Key] | None = None,
        shares: Float32Array | None = None,
        timeout: float | None = None,
    ) -> Scanned:
        """See `Encoder.scan`."""
        request = requests.scan_request(embeddings, head_weights, limit, keys, shares, self._expected, self._limits)
        answer = await self._call(self._stub.Scan, request, timeout)
        return answers.scanned(answer, request, keys, self.address)

    async def explain(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus.paper(),
        timeout: float | None = None,
    ) -> Explanation:
        """See `Encoder.explain`."""
        encoding = await self.encode(image, prompt, focus=focus, outputs=EXPLAINED, timeout=timeout)
        return answers.explanation(encoding, self.address)

    async def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        self._closed = True
        for channel in list(self._channels.values()):
            await channel.close()

    async def __aenter__(self) -> AsyncEncoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _encode(
        self, source: EncodedImage, aims: Sequence[Aim], outputs: Outputs, timeout: float | None
    ) -> list[Encoding]:
        delivery, left = Delivery(source, self._servers, self._balance), self._deadline(timeout)
        while True:
            request = await asyncio.to_thread(
                requests.encode_request, source, aims, outputs, self._expected, self._limits, delivery.by_digest
            )
            try:
                answer = await self._attempt(delivery, "Encode", request, left())
            except (PictureNotHeld, *ELSEWHERE) as error:
                delivery.failed(error)
                continue
            delivery.delivered()
            return answers.encodings(answer, request, await self._known_info(), self.address)

    async def _info_of(self, server: str | None) -> ModelInfo:
        if self._info is not None:
            return self._info
        return self._learn(
            await self._call(self._stub_of(server).GetModelInfo, pb.GetModelInfoRequest(), self._timeout)
        )

    async def _anywhere(self, name: str, request: Any, timeout: float) -> Any:
        """A call that any server can answer, as often as it takes."""
        attempts, left = Attempts(self._balance.order()), self._deadline(timeout)
        while True:
            try:
                return await self._attempt(attempts, name, request, left())
            except ELSEWHERE as error:
                attempts.failed(error)

    async def _attempt(self, attempts: Attempts, name: str, request: Any, left: float) -> Any:
        with self._balance.calling(attempts.server):
            return await self._call(getattr(self._stub_of(attempts.server), name), request, attempts.share(left))

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            answer = await method(
                request, timeout=timeout or self._timeout, metadata=telemetry.with_trace(self._metadata)
            )
        except grpc.RpcError as error:
            raise requests.translate(error, self.address) from None
        return requests.readable(answer, self.address)


@dataclass(frozen=True, eq=False)
class AsyncPicture(Opened):
    """`Picture` for asyncio, opened by `AsyncEncoder.open`."""

    encoder: AsyncEncoder = field(kw_only=True, repr=False)

    encode = on_pictures(AsyncEncoder.encode)
    encode_prompts = on_pictures(AsyncEncoder.encode_prompts)
    explain = on_pictures(AsyncEncoder.explain)
