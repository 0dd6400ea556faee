"""`AsyncEncoder`: `Encoder` for asyncio, with the same methods as coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc

from phs_milvus.client import answers, requests
from phs_milvus.client.bulk import RetryBudget, Window
from phs_milvus.client.channels import Address, Tls, channel_credentials, channel_options, target_of, token_metadata
from phs_milvus.client.requests import DEFAULT_ADDRESS, DEFAULT_IN_FLIGHT, DEFAULT_TIMEOUT, Outputs
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import EncoderUnavailable, PhsError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Explanation, Float16Array, Float32Array, Focus, Limits, ModelInfo
from phs_milvus.pointing.prompts import Prompt


class AsyncEncoder:
    """`Encoder` for asyncio: the same arguments, results and errors. Create and use it on one event loop."""

    def __init__(
        self,
        address: Address = DEFAULT_ADDRESS,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        expected_fingerprint: str = "",
        tls: Tls | bool | None = None,
        token: str | None = None,
    ) -> None:
        self.address, target = target_of(address)
        self._timeout = timeout
        self._expected = expected_fingerprint
        # Not known until `fetch_info` is called, by the user or to check the first answer; until then, the defaults.
        self._info: ModelInfo | None = None
        self._limits = Limits()
        self._metadata = token_metadata(token)
        credentials, options = channel_credentials(tls), channel_options(address, tls)
        self._channel = (
            grpc.aio.insecure_channel(target, options)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options)
        )
        self._stub = pb_grpc.FocusEncoderStub(self._channel)

    async def fetch_info(self, *, timeout: float | None = None) -> ModelInfo:
        """See `Encoder.fetch_info`."""
        answer = await self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout)
        info = answers.model_info(answer, self.address)
        self._expected = requests.bound_to(self._expected, info)
        self._info, self._limits = info, info.limits
        return info

    async def _known_info(self) -> ModelInfo:
        """The server's model, fetched on first use."""
        return self._info or await self.fetch_info()

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
        request = await asyncio.to_thread(
            requests.encode_request, image, prompt, focus, outputs, self._expected, self._limits
        )
        answer = await self._call(self._stub.Encode, request, timeout)
        return answers.encoding(answer, request, await self._known_info(), self.address)

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
        """See `Encoder.encode_many`. `images` is read on the event loop, each image on a thread."""
        pairs = requests.pairs(images, prompts)
        window, budget = Window(in_flight), RetryBudget(timeout or self._timeout)
        stream = _AsyncStream(self._stub, self._metadata, self.address)
        exhausted = False
        try:
            while True:
                while not (window.full or exhausted):
                    pair = next(pairs, None)
                    if pair is None:
                        exhausted = True
                    elif message := await asyncio.to_thread(
                        requests.admit, window, *pair, focus, outputs, self._expected, self._limits
                    ):
                        stream.send(message)
                for result in window.ready():
                    yield result
                if window.empty:
                    if exhausted:
                        return
                    budget.progress()
                    continue
                try:
                    answer = await stream.receive(budget)
                    info = await self._known_info() if answer.HasField("response") else None
                    if answers.record(window, answer, info, self.address):
                        budget.progress()
                except answers.TRANSIENT as error:
                    with budget.waiting():
                        await asyncio.sleep(budget.pause(error))
                    stream.close()
                    stream = _AsyncStream(self._stub, self._metadata, self.address)
                    for message in window.unanswered():
                        stream.send(message)
        finally:
            stream.close()

    async def rerank(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        states: Float16Array,
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """See `Encoder.rerank`."""
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
        request = await asyncio.to_thread(requests.explain_request, image, prompt, focus, self._expected, self._limits)
        answer = await self._call(self._stub.Explain, request, timeout)
        return answers.explanation(answer, request, await self._known_info(), self.address)

    async def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncEncoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            answer = await method(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise requests.translate(error, self.address) from None
        return requests.readable(answer, self.address)


class _AsyncStream:
    """`_Stream` for asyncio."""

    def __init__(self, stub: pb_grpc.FocusEncoderStub, metadata: requests.Metadata, address: str) -> None:
        self._address = address
        self._requests: asyncio.Queue[pb.EncodeStreamRequest | None] = asyncio.Queue()
        self._call = stub.EncodeStream(self._outgoing(), metadata=metadata)

    async def _outgoing(self) -> AsyncIterator[pb.EncodeStreamRequest]:
        while (message := await self._requests.get()) is not None:
            yield message

    def send(self, message: pb.EncodeStreamRequest) -> None:
        self._requests.put_nowait(message)

    async def receive(self, budget: RetryBudget) -> pb.EncodeStreamResponse:
        try:
            with budget.waiting() as left:
                answer: pb.EncodeStreamResponse = await asyncio.wait_for(self._call.read(), left)
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
