"""What phs_milvus.client.stream is for `Encoder`, for `AsyncEncoder`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from phs_milvus.client import answers, requests
from phs_milvus.client.balance import Lanes
from phs_milvus.client.base import EncoderBase
from phs_milvus.client.bulk import RetryBudget, Window
from phs_milvus.client.feeds import Feed
from phs_milvus.contract import telemetry
from phs_milvus.contract.errors import EncoderUnavailable, PhsError
from phs_milvus.contract.types import ModelInfo

Item = TypeVar("Item")
Result = TypeVar("Result")


class AsyncStreamingEncoder(EncoderBase, ABC):
    """The part of `AsyncEncoder` that sends many images over streams."""

    @abstractmethod
    async def _info_of(self, server: str | None) -> ModelInfo:
        """See `StreamingEncoder._info_of`."""

    async def _streamed(
        self,
        feed: Feed[Item, Result],
        window: Window[Result],
        timeout: float | None,
    ) -> AsyncGenerator[tuple[Any, Result | PhsError], None]:
        """(key, result) of a feed's items, in the window's order."""
        budget = RetryBudget(timeout or self._timeout)
        inbox: asyncio.Queue[Any] = asyncio.Queue()

        def opened(server: str | None) -> _AsyncStream:
            method = getattr(self._stub_of(server), feed.method)
            metadata = telemetry.with_trace(self._metadata)
            stream = _AsyncStream(method, metadata, server or self.address, window.size, inbox)
            for message in feed.opening:
                stream.send(message)
            return stream

        lanes = Lanes(self._servers or [None], opened, window.size)
        feed.tell(lambda: inbox.put_nowait((None, None)))
        try:
            while True:
                while not (window.full or feed.exhausted) and (window.empty or feed.ready()):
                    await feed.arrival()
                    if message := await asyncio.to_thread(feed.fill, window, self._expected, self._limits):
                        lanes.send(message)
                for ready in window.ready():
                    yield ready
                if window.empty:
                    if feed.exhausted:
                        return
                    budget.progress()
                    continue
                source, answer = await self._next_answer(inbox, lanes.tend(), budget)
                if source is None or not lanes.is_open(source):
                    continue  # the feed has another item, or it comes from a stream that was given up
                source.received()
                try:
                    if isinstance(answer, PhsError):
                        raise answer
                    if lanes.repeats(source, answer.id):
                        continue
                    info = await self._info_of(lanes.server_of(source)) if answer.HasField(feed.answered) else None
                    if feed.record(window, answer, info, lanes.server_of(source) or self.address):
                        budget.progress()
                    lanes.answered(source, answer.id)
                except answers.TRANSIENT as error:
                    budget.broke(error)
                    lanes.broken(source)
        finally:
            lanes.close()

    async def _next_answer(self, inbox: asyncio.Queue[Any], most: float | None, budget: RetryBudget) -> tuple[Any, Any]:
        """See `StreamingEncoder._next_answer`."""
        with budget.waiting() as left:
            try:
                found: tuple[Any, Any] = await asyncio.wait_for(inbox.get(), left if most is None else min(most, left))
                return found
            except asyncio.TimeoutError:
                if most is None or left <= most:
                    raise budget.timed_out(self.address) from None
                return None, None


class _AsyncStream:
    """`Stream` for asyncio, with a task in place of the thread."""

    def __init__(
        self, method: Any, metadata: requests.Metadata, address: str, in_flight: int, inbox: asyncio.Queue[Any]
    ) -> None:
        self._address = address
        self._room = asyncio.Semaphore(in_flight)
        self._requests: asyncio.Queue[Message | None] = asyncio.Queue()
        self._inbox = inbox
        self._call = method(self._outgoing(), metadata=metadata)
        self._task = asyncio.create_task(self._pump(), name="phs-stream")

    async def _outgoing(self) -> AsyncIterator[Message]:
        while (message := await self._requests.get()) is not None:
            yield message

    def send(self, message: Message) -> None:
        self._requests.put_nowait(message)

    def received(self) -> None:
        """See `Stream.received`."""
        self._room.release()

    def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()
        self._task.cancel()

    async def _pump(self) -> None:
        end: PhsError = EncoderUnavailable("the server ended the stream")
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._inbox.put_nowait((self, requests.readable(answer, self._address)))
                await self._room.acquire()
        except grpc.RpcError as error:
            end = requests.stream_error(error, self._address)
        except PhsError as error:
            end = error
        except asyncio.CancelledError:  # the end of this task in any case
            end = EncoderUnavailable("the stream was closed")
        self._inbox.put_nowait((self, end))
