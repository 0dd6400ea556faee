"""A stream of images and their results: a call to each server, and the loop that keeps them going."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
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


class StreamingEncoder(EncoderBase, ABC):
    """The part of `Encoder` that sends many images over streams."""

    @abstractmethod
    def _info_of(self, server: str | None) -> ModelInfo:
        """The model, as far as it is known, else as that server names it."""

    def _streamed(
        self, feed: Feed[Item, Result], window: Window[Result], timeout: float | None
    ) -> Iterator[tuple[Any, Result | PhsError]]:
        """(key, result) of a feed's items, in the window's order."""
        budget = RetryBudget(timeout or self._timeout)
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def opened(server: str | None) -> Stream:
            method = getattr(self._stub_of(server), feed.method)
            metadata = telemetry.with_trace(self._metadata)
            stream = Stream(method, metadata, server or self.address, window.size, inbox)
            for message in feed.opening:
                stream.send(message)
            return stream

        lanes = Lanes(self._servers or [None], opened, window.size)
        feed.tell(lambda: inbox.put((None, None)))
        try:
            while True:
                while not (window.full or feed.exhausted) and (window.empty or feed.ready()):
                    if message := feed.fill(window, self._expected, self._limits):
                        lanes.send(message)
                yield from window.ready()
                if window.empty:
                    if feed.exhausted:
                        return
                    budget.progress()
                    continue
                source, answer = self._next_answer(inbox, lanes.tend(), budget)
                if source is None or not lanes.is_open(source):
                    continue  # the feed has another item, or it comes from a stream that was given up
                source.received()
                try:
                    if isinstance(answer, PhsError):
                        raise answer
                    if lanes.repeats(source, answer.id):
                        continue
                    info = self._info_of(lanes.server_of(source)) if answer.HasField(feed.answered) else None
                    if feed.record(window, answer, info, lanes.server_of(source) or self.address):
                        budget.progress()
                    lanes.answered(source, answer.id)
                except answers.TRANSIENT as error:
                    budget.broke(error)
                    lanes.broken(source)
        finally:
            lanes.close()

    def _next_answer(self, inbox: queue.SimpleQueue[Any], most: float | None, budget: RetryBudget) -> tuple[Any, Any]:
        """(stream, answer); (None, None) after `most` seconds, or when the feed has another item."""
        with budget.waiting() as left:
            try:
                return inbox.get(timeout=left if most is None else min(most, left))  # type: ignore[no-any-return]
            except queue.Empty:
                if most is None or left <= most:
                    raise budget.timed_out(self.address) from None
                return None, None


class Stream:
    """One call of a stream in both directions. A thread puts (this stream, answer or error) into an inbox.

    It takes off no more than `in_flight` answers that nobody has received: a server may send any number.
    """

    def __init__(
        self, method: Any, metadata: requests.Metadata, address: str, in_flight: int, inbox: queue.SimpleQueue[Any]
    ) -> None:
        self._address = address
        self._room = threading.Semaphore(in_flight)
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._inbox = inbox
        self._call = method(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._pump, name="phs-stream", daemon=True).start()

    def send(self, message: Message) -> None:
        self._requests.put(message)

    def received(self) -> None:
        """An answer left the inbox."""
        self._room.release()

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._room.release(2)  # for an answer that gRPC holds already, and then the thread sees the end of the call

    def _pump(self) -> None:
        try:
            for answer in self._call:
                self._inbox.put((self, answer))
                self._room.acquire()
            self._inbox.put((self, EncoderUnavailable("the server ended the stream")))
        except grpc.RpcError as error:
            self._inbox.put((self, requests.stream_error(error, self._address)))
