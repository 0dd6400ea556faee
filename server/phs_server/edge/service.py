"""The gRPC servicer: messages to values, the pipeline, and errors to statuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    DeadlineExceeded,
    EncoderUnavailable,
    ImageError,
    InvalidInput,
    ModelMismatch,
    PhsError,
    PromptError,
    status_of,
)
from phs_milvus.contract.types import MaskRuns
from phs_server.config import Settings
from phs_server.edge.admission import Admission
from phs_server.flow.pipeline import Pipeline
from phs_server.ops.metrics import Metrics

log = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FocusEncoder"].full_name

# Runs of one mask. Reading 4 million takes the event loop 0.2 s; a mask that needs more is noise, not a prompt.
_MAX_RUNS = 2**22

_BROKEN = "the thread that runs the model has died; restart the server"

# gRPC's iterator of a call's messages, which is left alone: it and its generator hold each other, and the last message,
# until Python collects its oldest generation, hundreds of MiB later. `context.read` gives the messages without it.
Messages = AsyncIterator[Any]


class FocusEncoderService:
    """Answers UNAVAILABLE until `pipeline` is set, so that the port can be open while the model loads."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.pipeline: Pipeline | None = None
        self.admission = Admission(settings)
        self._metrics = metrics
        self._stream_window = 4 * settings.max_batch_size
        self._receive_seconds = settings.receive_seconds
        self._readers: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[Any]] = set()
        self._broken = False

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the methods.

        The unary ones are registered as client-streaming, which is the same on the wire: gRPC reads the message of a
        unary method, up to max_message_bytes of it, before any code of ours can say no.
        """
        unary = (
            ("Encode", pb.EncodeRequest, self._encode),
            ("Rerank", pb.RerankRequest, self._rerank),
            ("Explain", pb.ExplainRequest, self._explain),
            ("GetModelInfo", pb.GetModelInfoRequest, self._model_info),
        )
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(
                self._unary(name, answer), kind.FromString, lambda response: response.SerializeToString()
            )
            for name, kind, answer in unary
        }
        handlers["EncodeStream"] = grpc.stream_stream_rpc_method_handler(
            self._encode_stream, pb.EncodeStreamRequest.FromString, pb.EncodeStreamResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def drain(self) -> None:
        """Ends every stream once what was read off it is answered; clients send the rest elsewhere."""
        for reader in self._readers:
            reader.cancel()

    def give_up(self) -> None:
        """Answers everything in progress UNAVAILABLE: the thread that would have finished it has died."""
        self._broken = True
        for task in self._working:
            task.cancel()

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Around what `give_up` may end."""
        task = asyncio.current_task()
        assert task is not None
        self._working.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self._broken:
                raise EncoderUnavailable(_BROKEN) from None
            raise
        finally:
            self._working.discard(task)

    # --- unary --------------------------------------------------------------------------------------------------------

    def _unary(
        self, name: str, answer: Callable[[Any, float | None], Awaitable[Message]]
    ) -> Callable[[Messages, grpc.aio.ServicerContext], Awaitable[Message | None]]:
        async def call(_: Messages, context: grpc.aio.ServicerContext) -> Message | None:
            try:
                return await self._admitted(context, answer)
            except asyncio.CancelledError:  # by the client, or its deadline passed
                self._metrics.failed(name, grpc.StatusCode.CANCELLED.name)
                raise
            except Exception as error:
                status = _status(error)
            self._fail(name, context, *status)
            return None  # the status is the answer

        return call

    async def _admitted(
        self, context: grpc.aio.ServicerContext, answer: Callable[[Any, float | None], Awaitable[Message]]
    ) -> Message:
        with self.admission.call():
            request = await self._receive(context)
            with self.admission.holding(context.peer(), request.ByteSize()), self._work():
                return await answer(request, context.time_remaining())

    async def _receive(self, context: grpc.aio.ServicerContext) -> Any:
        try:
            request = await asyncio.wait_for(context.read(), self._receive_seconds)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"the message did not arrive within {self._receive_seconds:g} s") from None
        if request is grpc.aio.EOF:
            raise InvalidInput("the call carries no message", "request")
        return request

    async def _encode(self, request: pb.EncodeRequest, timeout: float | None, wait: bool = False) -> pb.EncodeResponse:
        pipeline = self._ready(request.expected_fingerprint)
        encoding = await pipeline.encode(
            _image_of(request),
            _mask_of(request),
            wire.focus_from_pb(request, pipeline.info.heads),
            timeout=timeout,
            wait=wait,
        )
        self._metrics.served(encoding.timings)
        if encoding.timings is not None:
            self.admission.observe_wait((encoding.timings.queue_ms + encoding.timings.compute_ms) / 1000)
        return wire.encoding_to_pb(encoding, request.outputs)

    async def _rerank(self, request: pb.RerankRequest, timeout: float | None) -> pb.RerankResponse:
        pipeline = self._ready(request.expected_fingerprint)
        inputs = wire.rerank_inputs(request, pipeline.info)
        return pb.RerankResponse(scores=wire.tensor_to_pb(await pipeline.rerank(inputs, timeout=timeout)))

    async def _explain(self, request: pb.ExplainRequest, timeout: float | None) -> pb.ExplainResponse:
        pipeline = self._ready(request.expected_fingerprint)
        explanation = await pipeline.explain(
            _image_of(request), _mask_of(request), wire.focus_from_pb(request, pipeline.info.heads), timeout=timeout
        )
        return wire.explanation_to_pb(explanation)

    async def _model_info(self, request: pb.GetModelInfoRequest, timeout: float | None) -> pb.ModelInfo:
        return wire.info_to_pb(self._ready("").info)

    # --- bulk ---------------------------------------------------------------------------------------------------------

    async def _encode_stream(
        self, _: Messages, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.EncodeStreamResponse]:
        try:
            # Closed with the call: otherwise a cancelled stream's items go on until Python collects the generator.
            with self.admission.stream():
                async with aclosing(self._answers(context)) as answers:
                    async for response in answers:
                        yield response
            return
        except Exception as error:
            status = _status(error)
        self._fail("EncodeStream", context, *status)

    async def _answers(self, context: grpc.aio.ServicerContext) -> AsyncGenerator[pb.EncodeStreamResponse, None]:
        """Answers as they come.

        Raises:
            EncoderUnavailable: the server is draining, and what was read is answered.
        """
        self._ready("")
        peer = context.peer()
        window = asyncio.Semaphore(self._stream_window)
        finished: asyncio.Queue[pb.EncodeStreamResponse | None] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()

        async def answer(item: pb.EncodeStreamRequest) -> None:
            finished.put_nowait(await self._stream_item(item))

        def answered(size: int, task: asyncio.Task[None]) -> None:
            """Not a `finally` of `answer`: a task that is cancelled before its first step runs none of its code."""
            tasks.discard(task)
            self.admission.release(peer, size)

        async def read() -> None:
            while (item := await context.read()) is not grpc.aio.EOF:
                await window.acquire()
                size = item.ByteSize()
                await self.admission.wait(peer, size)
                task = asyncio.create_task(answer(item))
                tasks.add(task)
                task.add_done_callback(partial(answered, size))
                del item, task  # or a stream that falls silent would hold them

        async def finish() -> None:
            await asyncio.wait([reader])
            if tasks:
                await asyncio.wait(tasks)
            finished.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        finisher = asyncio.create_task(finish())
        try:
            while (response := await finished.get()) is not None:
                yield response
                # Only now: a client that sends and never reads is stopped here, with a bounded number of answers.
                window.release()
            if reader.cancelled():
                raise EncoderUnavailable("the server is shutting down; send what is not answered again")
            reader.result()
        finally:
            self._readers.discard(reader)
            for task in (reader, finisher, *tasks):
                task.cancel()

    async def _stream_item(self, item: pb.EncodeStreamRequest) -> pb.EncodeStreamResponse:
        try:
            with self._work():
                response = await self._encode(item.request, None, wait=True)
            return pb.EncodeStreamResponse(id=item.id, response=response)
        except Exception as error:
            code, details = _status(error)
            self._metrics.failed("EncodeStream", code.name)
            return wire.stream_error(item.id, code.value[0], details)

    # ------------------------------------------------------------------------------------------------------------------

    def _ready(self, expected_fingerprint: str) -> Pipeline:
        if self.pipeline is None:
            raise EncoderUnavailable("the model is still loading")
        if not self.pipeline.healthy:
            raise EncoderUnavailable(_BROKEN)
        info = self.pipeline.info
        if expected_fingerprint and expected_fingerprint != info.fingerprint:
            raise ModelMismatch(
                f"this server runs model '{info.model_id}' at {info.image_size} px (fingerprint "
                f"{info.fingerprint[:12]}), the request expects fingerprint {expected_fingerprint[:12]}"
            )
        return self.pipeline

    def _fail(self, method: str, context: grpc.aio.ServicerContext, code: grpc.StatusCode, details: str) -> None:
        """Ends a call with an error; the handler must return right after.

        Not by `context.abort`: the exception that it raises, its frames and gRPC's state of the call keep one another
        alive, with all that was received, until Python collects its oldest generation: hundreds of MiB later.
        """
        self._metrics.failed(method, code.name)
        log.debug("%s from %s: %s %s", method, context.peer(), code.name, details)
        context.set_code(code)
        context.set_details(details)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # What gRPC clients with a retry policy wait instead of their own back-off:
            # https://github.com/grpc/proposal/blob/master/A6-client-retries.md#pushback
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(self.admission.retry_hint_ms)),))


def _image_of(request: pb.EncodeRequest | pb.ExplainRequest) -> bytes:
    if not request.image:
        raise ImageError("is empty")
    return request.image


def _mask_of(request: pb.EncodeRequest | pb.ExplainRequest) -> MaskRuns | None:
    if len(request.mask.runs) > _MAX_RUNS:
        raise PromptError(f"has {len(request.mask.runs)} runs; this server takes up to {_MAX_RUNS}", "mask")
    return wire.mask_from_pb(request)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, PhsError):
        name, details = status_of(error)
        return grpc.StatusCode[name], details
    if isinstance(error, DecodeError):
        return grpc.StatusCode.INVALID_ARGUMENT, f"request: not a message of this method ({error})"
    log.error("internal error", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}"
