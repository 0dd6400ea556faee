"""What phs_milvus.client.stream is for `Encoder`, for `AsyncEncoder`."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from phs_milvus.client import answers, requests
from phs_milvus.client.base import EncoderBase
from phs_milvus.client.bulk import RetryBudget, Window
from phs_milvus.client.feeds import Feed
from phs_milvus.contract.errors import EncoderUnavailable, PhsError
from phs_milvus.contract.types import ModelInfo

Item = TypeVar("Item")
Result = TypeVar("Result")


class AsyncStreamingEncoder(EncoderBase, ABC):
    """The part of `AsyncEncoder` that sends many images over one stream."""

    @abstractmethod
    async def _known_info(self) -> ModelInfo:
        """The server's model, fetched on first use."""

    async def _streamed(
        self,
        feed: Feed[Item, Result],
        window: Window[Result],
        timeout: float | None,
    ) -> AsyncGenerator[tuple[Any, Result | PhsError], None]:
        """(key, result) of a feed's items, in the window's order."""
        budget = RetryBudget(timeout or self._timeout)
        stream = self._open_stream(feed, window.size)
        try:
            while True:
                while not (window.full or feed.exhausted) and (window.empty or feed.ready()):
                    await feed.arrival()
                    if message := await asyncio.to_thread(feed.fill, window, self._expected, self._limits):
                        stream.send(message)
                for ready in window.ready():
                    yield ready
                if window.empty:
                    if feed.exhausted:
                        return
                    budget.progress()
                    continue
                try:
                    if (answer := await stream.receive(budget)) is None:
                        continue  # the feed has another item
                    info = await self._known_info() if answer.HasField(feed.answered) else None
                    if feed.record(window, answer, info, self.address):
                        budget.progress()
                except answers.TRANSIENT as error:
                    with budget.waiting():
                        await asyncio.sleep(budget.pause(error))
                    stream.close()
                    stream = self._open_stream(feed, window.size)
                    for message in window.unanswered():
                        stream.send(message)
        finally:
            stream.close()

    def _open_stream(self, feed: Feed[Item, Result], in_flight: int) -> _AsyncStream:
        stream = _AsyncStream(getattr(self._stub, feed.method), self._metadata, self.address, in_flight)
        for message in feed.opening:
            stream.send(message)
        feed.tell(stream.interrupt)
        return stream


class _AsyncStream:
    """`Stream` for asyncio, with a task in place of the thread."""

    def __init__(self, method: Any, metadata: requests.Metadata, address: str, in_flight: int) -> None:
        self._address = address
        self._room = asyncio.Semaphore(in_flight)
        self._requests: asyncio.Queue[Message | None] = asyncio.Queue()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._call = method(self._outgoing(), metadata=metadata)
        self._task = asyncio.create_task(self._pump(), name="phs-stream")

    async def _outgoing(self) -> AsyncIterator[Message]:
        while (message := await self._requests.get()) is not None:
            yield message

    def send(self, message: Message) -> None:
        self._requests.put_nowait(message)

    def interrupt(self) -> None:
        """See `Stream.interrupt`."""
        self._answers.put_nowait(None)

    async def receive(self, budget: RetryBudget) -> Any:
        """See `Stream.receive`."""
        try:
            with budget.waiting() as left:
                answer = await asyncio.wait_for(self._answers.get(), left)
        except asyncio.TimeoutError:
            raise budget.timed_out(self._address) from None
        if answer is None:
            return None
        self._room.release()
        if isinstance(answer, PhsError):
            raise answer
        return answer

    def close(self) -> None:
        self._requests.put_nowait(None)
        self._call.cancel()
        self._task.cancel()

    async def _pump(self) -> None:
        end: PhsError = EncoderUnavailable("the server ended the stream")
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._answers.put_nowait(requests.readable(answer, self._address))
                await self._room.acquire()
        except grpc.RpcError as error:
            end = requests.stream_error(error, self._address)
        except PhsError as error:
            end = error
        except asyncio.CancelledError:  # the end of this task in any case
            end = EncoderUnavailable("the stream was closed")
        self._answers.put_nowait(end)
