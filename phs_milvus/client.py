"""Clients of the embedding server: `Encoder`, and `AsyncEncoder` with the same methods as coroutines.

    with Encoder("127.0.0.1:50051") as encoder:
        encoding = encoder.encode("street.jpg", Box(40, 60, 180, 220))
        encoding.embedding                                  # float32 [E], focused on what is in the box

Every call has a deadline. UNAVAILABLE and RESOURCE_EXHAUSTED, and nothing else, are retried with jittered pauses, by
gRPC itself for single calls (https://grpc.io/docs/guides/retry) and by resending unanswered items in bulk.
Create an Encoder after forking, not before: gRPC channels do not survive a fork.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import grpc
import numpy as np

from phs_milvus import wire
from phs_milvus._pb import encoder_pb2 as pb
from phs_milvus._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.bulk import Patience, Window
from phs_milvus.errors import EncoderBusy, EncoderUnavailable, ImageError, InvalidInput, PhsError, error_from_status
from phs_milvus.images import ImageSource, load_image
from phs_milvus.prompts import Prompt, to_runs
from phs_milvus.types import Encoding, Explanation, Float16Array, Float32Array, Focus, Limits, ModelInfo

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 30.0
DEFAULT_IN_FLIGHT = 64

_MESSAGE_BYTES = Limits.message_bytes
_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
_OPTIONS = [
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    # gRPC does not retry a call whose message outgrew this buffer; the default is 256 KiB, less than many photos.
    ("grpc.per_rpc_retry_buffer_size", _MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    (
        "grpc.service_config",
        json.dumps({"methodConfig": [{"name": [{"service": "phs.v1.FocusEncoder"}], "retryPolicy": _RETRIES}]}),
    ),
]
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_TRANSIENT = (EncoderUnavailable, EncoderBusy)


@dataclass(frozen=True)
class Outputs:
    """What an Encoding shall hold beside the embedding.

    Attributes:
        state: the PHS state, for storing with the image.
        heads: head scores and weights.
        timings: milliseconds in each stage of the server.
    """

    state: bool = False
    heads: bool = False
    timings: bool = False


class Encoder:
    """A connection to one embedding server. Thread-safe; close it, or use it as a context manager.

    Args:
        address: "host:port".
        timeout: seconds a single call may take, retries included; for bulk, seconds without any answer.
        expected_fingerprint: if given, every call fails with ModelMismatch unless the server runs this model.
    """

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT, expected_fingerprint: str = ""
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._expected = expected_fingerprint
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = pb_grpc.FocusEncoderStub(self._channel)

    @cached_property
    def info(self) -> ModelInfo:
        """The server's model and limits; asked once."""
        return wire.info_from_pb(self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), None))

    def encode(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> Encoding:
        """Encodes one image.

        Args:
            image: a path, the bytes of an image file, a PIL image, or a uint8 [height, width(, 3 or 4)] array.
            prompt: what to look at, in pixels of the upright image; None for a plain whole-image embedding.

        Raises:
            ImageError, PromptError, InvalidInput: the input is wrong.
            EncoderError: the server could not answer; see phs_milvus.errors.
        """
        request = _encode_request(image, prompt, focus, outputs, self._expected)
        return wire.encoding_from_pb(self._call(self._stub.Encode, request, timeout))

    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[Encoding | PhsError]:
        """Encodes many images over one stream, in order, reading `images` only `in_flight` ahead.

        A bad image yields its error in place of an Encoding and ends nothing. A broken connection is opened again and
        the unanswered items are resent, so a restarted server loses and doubles nothing.

        Raises:
            EncoderError: no answer for `timeout` seconds.
        """
        pairs = zip(images, repeat(None) if prompts is None else prompts, strict=False)
        window, patience = Window(in_flight), Patience(timeout or self._timeout)
        stream = _Stream(self._stub, self.address)
        exhausted = False
        try:
            while True:
                while not (window.full or exhausted):
                    pair = next(pairs, None)
                    if pair is None:
                        exhausted = True
                    elif message := _admit(window, *pair, focus, outputs, self._expected):
                        stream.send(message)
                yield from window.ready()
                if window.empty:
                    if exhausted:
                        return
                    patience.progress()
                    continue
                try:
                    window.answer(*_stream_answer(stream.receive(patience)))
                    patience.progress()
                except _TRANSIENT as error:
                    time.sleep(patience.pause(error))
                    stream.close()
                    stream = _Stream(self._stub, self.address)
                    for message in window.unanswered():
                        stream.send(message)
        finally:
            stream.close()

    def rerank(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        states: Float16Array,
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """Exact Query-DB PHS scores.

        Args:
            embeddings: [Q, E], the queries'.
            head_weights: [Q, H], the queries'.
            states: float16 [K, 2, D], the candidates'.

        Returns:
            float32 [Q, K], cosine similarity.
        """
        requests = _rerank_requests(embeddings, head_weights, states, self._expected)
        answers = [wire.scores_from_pb(self._call(self._stub.Rerank, request, timeout)) for request in requests]
        return np.concatenate(answers, axis=1)

    def explain(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        timeout: float | None = None,
    ) -> Explanation:
        """What each attention head looks at, which heads the prompt selects, and why. Raises as `encode`."""
        request = _explain_request(image, prompt, focus, self._expected)
        return wire.explanation_from_pb(self._call(self._stub.Explain, request, timeout))

    def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        self._channel.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: grpc.UnaryUnaryMultiCallable, request: object, timeout: float | None) -> object:
        try:
            return method(request, timeout=timeout or self._timeout)
        except grpc.RpcError as error:
            raise _translate(error, self.address) from None


class AsyncEncoder:
    """`Encoder` for asyncio: the same arguments, results and errors. Create and use it on one event loop."""

    def __init__(
        self, address: str = DEFAULT_ADDRESS, *, timeout: float = DEFAULT_TIMEOUT, expected_fingerprint: str = ""
    ) -> None:
        self.address = address
        self._timeout = timeout
        self._expected = expected_fingerprint
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub = pb_grpc.FocusEncoderStub(self._channel)

    async def info(self) -> ModelInfo:
        """The server's model and limits."""
        return wire.info_from_pb(await self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), None))

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
        request = await asyncio.to_thread(_encode_request, image, prompt, focus, outputs, self._expected)
        return wire.encoding_from_pb(await self._call(self._stub.Encode, request, timeout))

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
        pairs = zip(images, repeat(None) if prompts is None else prompts, strict=False)
        window, patience = Window(in_flight), Patience(timeout or self._timeout)
        stream = _AsyncStream(self._stub, self.address)
        exhausted = False
        try:
            while True:
                while not (window.full or exhausted):
                    pair = next(pairs, None)
                    if pair is None:
                        exhausted = True
                    elif message := await asyncio.to_thread(
                        _admit, window, *pair, focus, outputs, self._expected
                    ):
                        stream.send(message)
                for result in window.ready():
                    yield result
                if window.empty:
                    if exhausted:
                        return
                    patience.progress()
                    continue
                try:
                    window.answer(*_stream_answer(await stream.receive(patience)))
                    patience.progress()
                except _TRANSIENT as error:
                    await asyncio.sleep(patience.pause(error))
                    stream.close()
                    stream = _AsyncStream(self._stub, self.address)
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
        requests = _rerank_requests(embeddings, head_weights, states, self._expected)
        answers = [wire.scores_from_pb(await self._call(self._stub.Rerank, request, timeout)) for request in requests]
        return np.concatenate(answers, axis=1)

    async def explain(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        timeout: float | None = None,
    ) -> Explanation:
        """See `Encoder.explain`."""
        request = await asyncio.to_thread(_explain_request, image, prompt, focus, self._expected)
        return wire.explanation_from_pb(await self._call(self._stub.Explain, request, timeout))

    async def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncEncoder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable, request: object, timeout: float | None) -> object:
        try:
            return await method(request, timeout=timeout or self._timeout)
        except grpc.RpcError as error:
            raise _translate(error, self.address) from None


# --- one stream -------------------------------------------------------------------------------------------------------


class _Stream:
    """One EncodeStream call. A thread takes answers off it, so that waiting for one can time out."""

    def __init__(self, stub: pb_grpc.FocusEncoderStub, address: str) -> None:
        self._address = address
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._call = stub.EncodeStream(iter(self._requests.get, None))
        threading.Thread(target=self._pump, name="phs-encode-stream", daemon=True).start()

    def send(self, message: pb.EncodeStreamRequest) -> None:
        self._requests.put(message)

    def receive(self, patience: Patience) -> pb.EncodeStreamResponse:
        try:
            answer = self._answers.get(timeout=patience.left)
        except queue.Empty:
            raise patience.timed_out() from None
        if isinstance(answer, PhsError):
            raise answer
        return answer

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()

    def _pump(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
            self._answers.put(EncoderUnavailable("the server ended the stream"))
        except grpc.RpcError as error:
            self._answers.put(_stream_error(error, self._address))


class _AsyncStream:
    """`_Stream` for asyncio."""

    def __init__(self, stub: pb_grpc.FocusEncoderStub, address: str) -> None:
        self._address = address
        self._requests: asyncio.Queue = asyncio.Queue()
        self._call = stub.EncodeStream(self._outgoing())

    async def _outgoing(self) -> AsyncIterator[pb.EncodeStreamRequest]:
        while (message := await self._requests.get()) is not None:
            yield message

    def send(self, message: pb.EncodeStreamRequest) -> None:
        self._requests.put_nowait(message)

    async def receive(self, patience: Patience) -> pb.EncodeStreamResponse:
        try:
            answer = await asyncio.wait_for(self._call.read(), patience.left)
        except asyncio.TimeoutError:
            raise patience.timed_out() from None
        except grpc.RpcError as error:
            raise _stream_error(error, self._address) from None
        if answer is grpc.aio.EOF:
            raise EncoderUnavailable("the server ended the stream")
        return answer

    def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()


def _stream_error(error: grpc.RpcError, address: str) -> PhsError:
    """A draining server cancels streams; that is a reason to reconnect, as losing the connection is."""
    if error.code() is grpc.StatusCode.CANCELLED:
        return EncoderUnavailable(f"the server at {address} closed the stream")
    return _translate(error, address)


def _stream_answer(response: pb.EncodeStreamResponse) -> tuple[int, Encoding | PhsError]:
    """(item, result).

    Raises:
        EncoderUnavailable, EncoderBusy: the server is closing or full; the item should be sent again.
    """
    item, result = wire.stream_result_from_pb(response)
    if isinstance(result, Encoding):
        return item, result
    code, message = result
    error = error_from_status(_CODE_NAMES.get(code, "UNKNOWN"), message)
    if isinstance(error, _TRANSIENT):
        raise error
    return item, error


# --- building requests ------------------------------------------------------------------------------------------------


def _admit(
    window: Window,
    image: ImageSource,
    prompt: Prompt | None,
    focus: Focus,
    outputs: Outputs,
    expected: str,
) -> pb.EncodeStreamRequest | None:
    """Takes an item into the window; the message to send, or None where it failed before that."""
    try:
        return window.add(_encode_request(image, prompt, focus, outputs, expected))
    except PhsError as error:
        window.add_failed(error)
        return None


def _encode_request(
    image: ImageSource, prompt: Prompt | None, focus: Focus, outputs: Outputs, expected: str
) -> pb.EncodeRequest:
    source = load_image(image)
    request = wire.encode_request(
        source.data,
        to_runs(prompt, source.width, source.height),
        focus,
        state=outputs.state,
        heads=outputs.heads,
        timings=outputs.timings,
        expected_fingerprint=expected,
    )
    return _sized(request)


def _explain_request(image: ImageSource, prompt: Prompt | None, focus: Focus, expected: str) -> pb.ExplainRequest:
    source = load_image(image)
    runs = to_runs(prompt, source.width, source.height)
    return _sized(wire.explain_request(source.data, runs, focus, expected))


def _sized(request: pb.EncodeRequest | pb.ExplainRequest) -> pb.EncodeRequest | pb.ExplainRequest:
    """Checked here because gRPC reports an oversized message as RESOURCE_EXHAUSTED, like a full queue."""
    size = request.ByteSize()
    if size > _MESSAGE_BYTES - 1024:
        raise ImageError(f"image and mask make a message of {size} bytes; {_MESSAGE_BYTES} are allowed")
    return request


def _rerank_requests(
    embeddings: Float32Array, head_weights: Float32Array, states: Float16Array, expected: str
) -> list[pb.RerankRequest]:
    """As few requests as fit the message limit."""
    embeddings = np.asarray(embeddings, np.float32)
    head_weights = np.asarray(head_weights, np.float32)
    states = np.asarray(states, np.float16)
    if embeddings.ndim != 2 or head_weights.ndim != 2 or len(embeddings) != len(head_weights):
        raise InvalidInput(
            f"expected embeddings [Q, E] and head_weights [Q, H], got {embeddings.shape} and {head_weights.shape}",
            "embeddings",
        )
    if states.ndim != 3 or states.shape[1] != 2 or not states.size:
        raise InvalidInput(f"expected shape [K, 2, D] with at least one state, got {states.shape}", "states")
    fixed = embeddings.nbytes + head_weights.nbytes + 4096
    per_state = states[0].nbytes
    count = max(1, (_MESSAGE_BYTES - fixed) // per_state)
    return [
        wire.rerank_request(embeddings, head_weights, states[start : start + count], expected)
        for start in range(0, len(states), count)
    ]


def _translate(error: grpc.RpcError, address: str) -> PhsError:
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE:
        details = (
            f"no answer from the embedding server at {address} ({details}); "
            "is it running? start one with: phs-server --model <id or directory>"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"the embedding server at {address} did not answer in time ({details})"
    return error_from_status(code.name, details)


__all__ = ["DEFAULT_ADDRESS", "DEFAULT_TIMEOUT", "AsyncEncoder", "Encoder", "Outputs"]
