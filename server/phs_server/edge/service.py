"""The gRPC servicer: messages to values, the pipeline, and values to messages."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelMismatch,
    ServerBroken,
    ServerDraining,
    ServerLoading,
)
from phs_milvus.contract.types import Timings
from phs_server.config import Settings
from phs_server.edge.admission import Admission, Hold
from phs_server.edge.callers import Caller
from phs_server.edge.calls import Calls, status_and_details
from phs_server.edge.connections import Connections
from phs_server.edge.messages import check_runs, parse
from phs_server.edge.places import Place
from phs_server.edge.receiving import Receiver
from phs_server.flow.pipeline import Pipeline
from phs_server.flow.views import Asked
from phs_server.ops.metrics import Metrics

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FocusEncoder"].full_name

_BROKEN = "the thread that runs the model has died; restart the server"
# A request in progress is held as a protobuf message and as arrays, an answer as bytes of Python and of gRPC.
_COPIES = 2

# Images of one Locate call that go before bulk: someone waits for the first hits, not for a thousand.
_LOCATED_PROMPTLY = 32

Answer = Callable[[Any, Hold, float | None], Awaitable[Message]]
Item = TypeVar("Item", bound=Message)


class FocusEncoderService:
    """Answers UNAVAILABLE until `pipeline` is set, so that the port can be open while the model loads."""

    def __init__(self, settings: Settings, metrics: Metrics, admission: Admission, connections: Connections) -> None:
        self.pipeline: Pipeline | None = None
        self.admission = admission
        self._metrics = metrics
        self._stream_window = 4 * settings.max_batch_size
        self._receive_seconds = settings.receive_seconds
        self._answer_seconds = settings.answer_seconds
        self._connections = connections
        # Of one address; never less than one message, which is unfinished while it arrives.
        unfinished = max(settings.max_in_flight_bytes // 8, settings.max_message_bytes)
        self._receiver = Receiver(unfinished, settings.max_message_bytes, connections)
        self._readers: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[Any]] = set()
        self._broken = False
        self._draining = False

    def handlers(self, calls: Calls) -> dict[str, grpc.RpcMethodHandler]:
        """The methods by name."""
        unary: tuple[tuple[str, type[Message], int, Answer], ...] = (
            ("Encode", pb.EncodeRequest, 1, self._encode),
            ("Readout", pb.ReadoutRequest, 0, self._read_out),
            ("Rerank", pb.RerankRequest, 0, self._rerank),
            ("Scan", pb.ScanRequest, 0, self._scan),
            ("GetModelInfo", pb.GetModelInfoRequest, 0, self._model_info),
        )
        handlers = {
            name: calls.guarded(name, self.admission.calls, partial(self._unary, kind, images, answer))
            for name, kind, images, answer in unary
        }
        for name, serve in (("EncodeStream", self._encode_stream), ("Locate", self._locate)):
            handlers[name] = calls.guarded(name, self.admission.streams, serve)
        return handlers

    async def watch(self) -> None:
        """Bounds what unfinished messages hold, until it is cancelled."""
        await self._receiver.watch()

    def drain(self) -> None:
        """Ends every stream once what was read off it is answered; clients send the rest elsewhere."""
        self._draining = True
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
                raise ServerBroken(_BROKEN) from None
            raise
        finally:
            self._working.discard(task)

    # --- unary --------------------------------------------------------------------------------------------------------

    async def _unary(
        self,
        kind: type[Message],
        images: int,
        answer: Answer,
        context: grpc.aio.ServicerContext,
        caller: Caller,
        place: Place,
    ) -> None:
        self._ready()
        with self.admission.holding(caller) as hold:
            data = await self._answered(kind, images, answer, context, hold, place)
            self.admission.resize(hold, _COPIES * len(data))
            await self._send(context, place, data)

    async def _answered(
        self,
        kind: type[Message],
        images: int,
        answer: Answer,
        context: grpc.aio.ServicerContext,
        hold: Hold,
        place: Place,
    ) -> bytes:
        """Its message and the arrays made of it are gone when this returns."""
        data = await self._receive(context, place)
        self.admission.grow(hold, self._cost(len(data), images), images)
        with self._work():
            request = parse(kind, data)
            del data
            return (await answer(request, hold, context.time_remaining())).SerializeToString()

    async def _receive(self, context: grpc.aio.ServicerContext, place: Place) -> bytes:
        try:
            data = await asyncio.wait_for(self._receiver.read(context, place), self._receive_seconds)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(f"the message did not arrive within {self._receive_seconds:g} s") from None
        if data is None:
            raise InvalidInput("the call carries no message", "request")
        return data

    async def _send(self, context: grpc.aio.ServicerContext, place: Place, data: bytes) -> None:
        """Returns when gRPC has written all of it; a caller that does not read loses its connection."""
        overdue = asyncio.get_running_loop().call_later(
            self._answer_seconds, self._connections.close, place.caller.peer
        )
        try:
            with place.sending():
                await context.write(data)
        finally:
            overdue.cancel()

    def _cost(self, size: int, images: int) -> int:
        """Bytes held for a request whose message has `size`."""
        side = 0 if self.pipeline is None else self.pipeline.info.image_size
        return max(_COPIES * size, images * 3 * side * side)

    async def _encode(self, request: pb.EncodeRequest, hold: Hold, timeout: float | None) -> pb.EncodeResponse:
        return await self._encoded(request, timeout, hold)

    async def _encoded(self, request: pb.EncodeRequest, timeout: float | None, hold: Hold | None) -> pb.EncodeResponse:
        """Answers one request; hold: of a call of its own, None for bulk, which has waited for its room."""
        pipeline = self._ready(request.expected_fingerprint)
        wire.check_outputs(request.outputs)
        image, digest = wire.image_of(request)
        check_runs(wire.count_runs(request))
        pointings = wire.pointings_of(request, pipeline.info.heads)
        if hold is not None:
            more = wire.count_images(request) - 1
            self.admission.grow(hold, self._cost(0, more), more)
        wants_features = pb.OUTPUT_REGION_FEATURE in request.outputs
        owner = None if hold is None else hold.caller.identity
        asked = Asked(image, digest, pointings, owner=owner, region_features=wants_features)
        encodings = await pipeline.encode(asked, timeout=timeout, bulk=hold is None)
        self._observe(encodings[0].timings)
        return wire.encodings_to_pb(encodings, request)

    def _observe(self, timings: Timings | None) -> None:
        if timings is not None:
            self._metrics.served(timings)
            self.admission.observe_wait((timings.queue_ms + timings.compute_ms) / 1000)

    async def _rerank(self, request: pb.RerankRequest, hold: Hold, timeout: float | None) -> pb.RerankResponse:
        pipeline = self._ready(request.expected_fingerprint)
        inputs = wire.rerank_inputs(request, pipeline.info)
        # Scores are float32; they are an array before they are a message.
        self.admission.grow(hold, (_COPIES + 1) * 4 * len(inputs[0]) * len(inputs[2]))
        return pb.RerankResponse(scores=wire.tensor_to_pb(await pipeline.rerank(inputs, timeout=timeout)))

    async def _scan(self, request: pb.ScanRequest, hold: Hold, timeout: float | None) -> pb.ScanResponse:
        pipeline = self._ready(request.expected_fingerprint)
        if pipeline.scans is None:
            raise InvalidInput("this server has no states; start it with phs-server --states FILE", "scan")
        caller = hold.caller.identity or hold.caller.address
        with pipeline.scans.opened(wire.scan_inputs(request, pipeline.info), caller) as scan:
            self.admission.grow(hold, scan.nbytes + _COPIES * scan.answer_bytes)
            return wire.scanned_to_pb(await pipeline.scan(scan, timeout=timeout))

    async def _read_out(self, request: pb.ReadoutRequest, hold: Hold, timeout: float | None) -> pb.ReadoutResponse:
        pipeline = self._ready(request.expected_fingerprint)
        states, weights = wire.readout_inputs(request, pipeline.info)
        self.admission.grow(hold, (_COPIES + 1) * 4 * len(states) * pipeline.info.embedding_size)
        embeddings = await pipeline.read_out(states, weights, timeout=timeout)
        return pb.ReadoutResponse(embeddings=wire.tensor_to_pb(embeddings))

    async def _model_info(self, request: pb.GetModelInfoRequest, _: Hold, timeout: float | None) -> pb.ModelInfo:
        return wire.info_to_pb(self._ready().info)

    # --- streams ------------------------------------------------------------------------------------------------------

    async def _encode_stream(self, context: grpc.aio.ServicerContext, caller: Caller, place: Place) -> None:
        """Answers items as they are done, bulk."""

        async def answer(item: pb.EncodeStreamRequest) -> pb.EncodeStreamResponse:
            try:
                with self._work():
                    response = await self._encoded(item.request, None, None)
                return pb.EncodeStreamResponse(id=item.id, response=response)
            except Exception as error:
                return wire.stream_error(item.id, *self._item_failed("EncodeStream", error))

        self._ready()
        await self._items(
            pb.EncodeStreamRequest, lambda item: wire.count_images(item.request), answer, context, caller, place
        )

    async def _locate(self, context: grpc.aio.ServicerContext, caller: Caller, place: Place) -> None:
        """Answers images as they are done, once the first message has said what to look for."""
        pipeline = self._ready()
        first = parse(pb.LocateRequest, await self._receive(context, place))
        if not first.HasField("query") or first.image or first.digest:
            raise InvalidInput("must be in the first message, alone", "query")
        self._ready(first.query.expected_fingerprint)
        target = wire.target_from_pb(first.query, pipeline.info)
        del first  # or it would live as long as the stream
        number = itertools.count()

        async def answer(item: pb.LocateRequest) -> pb.LocateResponse:
            try:
                if item.HasField("query"):
                    raise InvalidInput("is for the first message of a call; open another one", "query")
                image, digest = wire.image_of(item)
                asked = Asked(image, digest, target=target, owner=caller.identity)
                with self._work():
                    location = await self._ready().locate(asked, bulk=next(number) >= _LOCATED_PROMPTLY)
                return wire.location_to_pb(item.id, location)
            except Exception as error:
                return wire.locate_error(item.id, *self._item_failed("Locate", error))

        await self._items(pb.LocateRequest, lambda _: 1, answer, context, caller, place)

    async def _items(
        self,
        kind: type[Item],
        images_of: Callable[[Item], int],
        answer: Callable[[Item], Awaitable[Message]],
        context: grpc.aio.ServicerContext,
        caller: Caller,
        place: Place,
    ) -> None:
        """Reads items of a stream as there is room for them, and sends their answers in the order they are done.

        Args:
            images_of: how many images an item is to the model.

        Raises:
            ServerDraining: the server is shutting down, and what was read is answered.
        """
        if self._draining:
            raise ServerDraining("the server is shutting down; send this call again")
        window = asyncio.Semaphore(self._stream_window)
        finished: asyncio.Queue[tuple[Hold, bytes] | None] = asyncio.Queue()
        tasks: set[asyncio.Task[None]] = set()
        holds: set[Hold] = set()

        async def work(item: Item, hold: Hold) -> None:
            data = (await answer(item)).SerializeToString()
            self.admission.resize(hold, _COPIES * len(data))
            finished.put_nowait((hold, data))

        async def read() -> None:
            while (data := await self._receiver.read(context, place)) is not None:
                await window.acquire()
                item = parse(kind, data)
                images = images_of(item)
                hold = await self.admission.wait(caller, self._cost(len(data), images), images)
                holds.add(hold)
                task = asyncio.create_task(work(item, hold))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                del data, item, task  # or a stream that falls silent would hold them

        async def finish() -> None:
            await asyncio.wait([reader])
            if tasks:
                await asyncio.wait(tasks)
            finished.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        finisher = asyncio.create_task(finish())
        try:
            while (one := await finished.get()) is not None:
                hold, data = one
                with place.sending():
                    await context.write(data)
                holds.discard(hold)
                self.admission.release(hold)
                # Only now: a client that sends and never reads is stopped here, with a bounded number of answers.
                window.release()
                del one, hold, data
            if reader.cancelled():
                raise ServerDraining("the server is shutting down; send what is not answered again")
            reader.result()
        finally:
            self._readers.discard(reader)
            for task in (reader, finisher, *tasks):
                task.cancel()
            for hold in holds:
                self.admission.release(hold)

    def _item_failed(self, method: str, error: Exception) -> tuple[int, str]:
        """(google.rpc.Code number, message) of an item's error."""
        code, details = status_and_details(error)
        self._metrics.failed(method, code.name)
        return code.value[0], details

    # ------------------------------------------------------------------------------------------------------------------

    def _ready(self, expected_fingerprint: str = "") -> Pipeline:
        if self.pipeline is None:
            raise ServerLoading("the model is still loading")
        if not self.pipeline.healthy:
            raise ServerBroken(_BROKEN)
        info = self.pipeline.info
        if expected_fingerprint and expected_fingerprint != info.fingerprint:
            raise ModelMismatch(
                f"this server runs model '{info.model_id}' at {info.image_size} px (fingerprint "
                f"{info.fingerprint[:12]}), the request expects fingerprint {expected_fingerprint[:12]}"
            )
        return self.pipeline
