"""`AsyncEncoder`: `Encoder` for asyncio, with the same methods as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message

from phs_milvus.client import answers, requests
from phs_milvus.client.base import EncoderBase
from phs_milvus.client.bulk import RetryBudget, Window
from phs_milvus.client.feeds import EncodeFeed, Feed, LazyImage, LocateFeed
from phs_milvus.client.pictures import AsyncPicture, Delivery
from phs_milvus.client.requests import DEFAULT_IN_FLIGHT, EXPLAINED, Aim, Outputs
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import EncoderBusy, EncoderUnavailable, PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage, ImageSource, load_image
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.types import Encoding, Explanation, Float32Array, Focus, ModelInfo, States
from phs_milvus.pointing.prompts import Prompt

Item = TypeVar("Item")
Result = TypeVar("Result")


class AsyncEncoder(EncoderBase):
    """`Encoder` for asyncio: the same arguments, results and errors. Create and use it on one event loop."""

    _insecure_channel = staticmethod(grpc.aio.insecure_channel)
    _secure_channel = staticmethod(grpc.aio.secure_channel)

    async def fetch_info(self, *, timeout: float | None = None) -> ModelInfo:
        """See `Encoder.fetch_info`."""
        return self._learn(await self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout))

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
        if len(aims) > most and not isinstance(source, AsyncPicture):
            source = await self.open(source)  # whose bytes need not go with every request
        for start in range(0, len(aims), most):
            encodings += await self._encode(source, aims[start : start + most], outputs, timeout)
        return encodings

    async def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncIterator[Encoding | PhsError]:
        """See `Encoder.encode_many`. `images` is read on a thread, image by image."""
        items = ((image, [Aim(prompt, focus)]) for image, prompt in requests.pairs(images, prompts))
        async for result in self._streamed(EncodeFeed(items, outputs), in_flight, timeout):
            yield result if isinstance(result, PhsError) else result[0]

    def encode_aims(
        self,
        items: Iterable[tuple[ImageSource, Sequence[Aim]]],
        *,
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncIterator[list[Encoding] | PhsError]:
        """See `Encoder.encode_aims`."""
        return self._streamed(EncodeFeed(items, outputs), in_flight, timeout)

    def locate(
        self,
        target: LocateTarget,
        images: Iterable[LazyImage],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> AsyncIterator[Location | PhsError]:
        """See `Encoder.locate`."""
        return self._streamed(LocateFeed(images, target, self._expected), in_flight, timeout)

    async def readout(
        self, states: States, head_weights: Float32Array, *, timeout: float | None = None
    ) -> Float32Array:
        """See `Encoder.readout`."""
        info, parts = await self._known_info(), []
        states = requests.sendable(states, info)
        for request in requests.readout_requests(states, head_weights, self._expected, info):
            answer = await self._call(self._stub.Readout, request, timeout)
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
        if isinstance(states, Int8States):
            states = requests.sendable(states, await self._known_info())
        scores, messages = requests.rerank_requests(embeddings, head_weights, states, self._expected, self._limits)
        for block, request in messages:
            answer = await self._call(self._stub.Rerank, request, timeout)
            scores[block] = answers.scores(answer, request, self.address)
        return scores

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
        delivery, left = Delivery(source, self._servers), self._deadline(timeout)
        while True:
            request = await asyncio.to_thread(
                requests.encode_request, source, aims, outputs, self._expected, self._limits, delivery.by_digest
            )
            try:
                answer = await self._call(self._stub_of(delivery.server).Encode, request, left())
            except (PictureNotHeld, EncoderBusy, EncoderUnavailable) as error:
                delivery.failed(error)
                continue
            delivery.delivered()
            return answers.encodings(answer, request, await self._known_info(), self.address)

    async def _streamed(
        self, feed: Feed[Item, Result], in_flight: int, timeout: float | None
    ) -> AsyncIterator[Result | PhsError]:
        window: Window[Result] = Window(in_flight)
        budget = RetryBudget(timeout or self._timeout)
        stream = self._open_stream(feed)
        try:
            while True:
                while not (window.full or feed.exhausted):
                    if message := await asyncio.to_thread(feed.fill, window, self._expected, self._limits):
                        stream.send(message)
                for result in window.ready():
                    yield result
                if window.empty:
                    if feed.exhausted:
                        return
                    budget.progress()
                    continue
                try:
                    answer = await stream.receive(budget)
                    info = await self._known_info() if answer.HasField(feed.answered) else None
                    if feed.record(window, answer, info, self.address):
                        budget.progress()
                except answers.TRANSIENT as error:
                    with budget.waiting():
                        await asyncio.sleep(budget.pause(error))
                    stream.close()
                    stream = self._open_stream(feed)
                    for message in window.unanswered():
                        stream.send(message)
        finally:
            stream.close()

    def _open_stream(self, feed: Feed[Item, Result]) -> _AsyncStream:
        stream = _AsyncStream(getattr(self._stub, feed.method), self._metadata, self.address)
        for message in feed.opening:
            stream.send(message)
        return stream

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            answer = await method(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise requests.translate(error, self.address) from None
        return requests.readable(answer, self.address)


class _AsyncStream:
    """`Stream` for asyncio."""

    def __init__(self, method: Any, metadata: requests.Metadata, address: str) -> None:
        self._address = address
        self._requests: asyncio.Queue[Message | None] = asyncio.Queue()
        self._call = method(self._outgoing(), metadata=metadata)

    async def _outgoing(self) -> AsyncIterator[Message]:
        while (message := await self._requests.get()) is not None:
            yield message

    def send(self, message: Message) -> None:
        self._requests.put_nowait(message)

    async def receive(self, budget: RetryBudget) -> Any:
        try:
            with budget.waiting() as left:
                answer = await asyncio.wait_for(self._call.read(), left)
        except asyncio.TimeoutError:
            raise budget.timed_out(self._address) from None
        except grpc.RpcError as error:
            raise requests.stream_error(error, self._address) from None
        if answer is grpc.aio.EOF:
            raise EncoderUnavailable("the server ended the stream")
        return requests.readable(answer, self._address)

    def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()
