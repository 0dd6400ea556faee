"""The gRPC servicer: messages to values, the pipeline, and errors to statuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc

from phs_milvus import wire
from phs_milvus._pb import encoder_pb2 as pb
from phs_milvus._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.errors import EncoderUnavailable, ImageError, ModelMismatch, PhsError, status_of
from phs_server.pipeline import Pipeline

log = logging.getLogger(__name__)


class FocusEncoderService(pb_grpc.FocusEncoderServicer):
    """Answers UNAVAILABLE until `pipeline` is set, so that the port can be open while the model loads.

    Args:
        stream_window: items of one stream worked on at once; more wait in the transport.
    """

    def __init__(self, stream_window: int) -> None:
        self.pipeline: Pipeline | None = None
        self._stream_window = stream_window

    async def Encode(self, request: pb.EncodeRequest, context: grpc.aio.ServicerContext) -> pb.EncodeResponse:
        try:
            return await self._encode(request, context.time_remaining(), wait=False)
        except Exception as error:
            await _abort(context, error)

    async def EncodeStream(
        self, requests: AsyncIterator[pb.EncodeStreamRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.EncodeStreamResponse]:
        window = asyncio.Semaphore(self._stream_window)
        finished: asyncio.Queue[pb.EncodeStreamResponse | None] = asyncio.Queue()
        tasks: set[asyncio.Task] = set()

        async def answer(request: pb.EncodeStreamRequest) -> None:
            finished.put_nowait(await self._stream_item(request))

        async def read() -> None:
            try:
                async for request in requests:
                    await window.acquire()
                    task = asyncio.create_task(answer(request))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.gather(*tasks)
            finally:
                finished.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (response := await finished.get()) is not None:
                yield response
                # Only now: a client that sends and never reads is stopped here, with a bounded number of answers.
                window.release()
        finally:
            for task in (reader, *tasks):
                task.cancel()

    async def Rerank(self, request: pb.RerankRequest, context: grpc.aio.ServicerContext) -> pb.RerankResponse:
        try:
            pipeline = self._ready(request.expected_fingerprint)
            info = pipeline.info
            inputs = wire.rerank_inputs(request, info.heads, info.hidden_size, info.embedding_size)
            scores = await pipeline.rerank(inputs, timeout=context.time_remaining())
            return pb.RerankResponse(scores=wire.tensor_to_pb(scores))
        except Exception as error:
            await _abort(context, error)

    async def Explain(self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext) -> pb.ExplainResponse:
        try:
            pipeline = self._ready(request.expected_fingerprint)
            explanation = await pipeline.explain(
                _image_of(request),
                wire.mask_from_pb(request),
                wire.focus_from_pb(request, pipeline.info.heads),
                timeout=context.time_remaining(),
            )
            return wire.explanation_to_pb(explanation)
        except Exception as error:
            await _abort(context, error)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.aio.ServicerContext) -> pb.ModelInfo:
        try:
            return wire.info_to_pb(self._ready("").info)
        except Exception as error:
            await _abort(context, error)

    async def _encode(self, request: pb.EncodeRequest, timeout: float | None, wait: bool) -> pb.EncodeResponse:
        pipeline = self._ready(request.expected_fingerprint)
        encoding = await pipeline.encode(
            _image_of(request),
            wire.mask_from_pb(request),
            wire.focus_from_pb(request, pipeline.info.heads),
            timeout=timeout,
            wait=wait,
        )
        return wire.encoding_to_pb(encoding, request.outputs)

    async def _stream_item(self, item: pb.EncodeStreamRequest) -> pb.EncodeStreamResponse:
        try:
            response = await self._encode(item.request, None, wait=True)
            return pb.EncodeStreamResponse(id=item.id, response=response)
        except Exception as error:
            code, details = _status(error)
            return wire.stream_error(item.id, code.value[0], details)

    def _ready(self, expected_fingerprint: str) -> Pipeline:
        if self.pipeline is None:
            raise EncoderUnavailable("the model is still loading")
        info = self.pipeline.info
        if expected_fingerprint and expected_fingerprint != info.fingerprint:
            raise ModelMismatch(
                f"this server runs model '{info.model_id}' at {info.image_size} px (fingerprint "
                f"{info.fingerprint[:12]}), the request expects fingerprint {expected_fingerprint[:12]}"
            )
        return self.pipeline


def _image_of(request: pb.EncodeRequest | pb.ExplainRequest) -> bytes:
    if not request.image:
        raise ImageError("is empty")
    return request.image


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, PhsError):
        name, details = status_of(error)
        return grpc.StatusCode[name], details
    log.error("internal error", exc_info=error)
    return grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}: {error}"


async def _abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    code, details = _status(error)
    await context.abort(code, details)
    raise AssertionError("abort always raises")
