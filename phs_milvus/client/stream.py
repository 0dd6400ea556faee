"""A stream of images and their results: one call whose answers can be waited for, and the loop that keeps it going."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
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


class StreamingEncoder(EncoderBase, ABC):
    """The part of `Encoder` that sends many images over one stream."""

    @property
    @abstractmethod
    def info(self) -> ModelInfo:
        """The server's model."""

    def _streamed(
        self, feed: Feed[Item, Result], window: Window[Result], timeout: float | None
    ) -> Iterator[tuple[Any, Result | PhsError]]:
        """(key, result) of a feed's items, in the window's order."""
        budget = RetryBudget(timeout or self._timeout)
        stream = self._open_stream(feed, window.size)
        try:
            while True:
                while not (window.full or feed.exhausted) and (window.empty or feed.ready()):
                    if message := feed.fill(window, self._expected, self._limits):
                        stream.send(message)
                yield from window.ready()
                if window.empty:
                    if feed.exhausted:
                        return
                    budget.progress()
                    continue
                try:
                    if (answer := stream.receive(budget)) is None:
                        continue  # the feed has another item
                    info = self.info if answer.HasField(feed.answered) else None
                    if feed.record(window, answer, info, self.address):
                        budget.progress()
                except answers.TRANSIENT as error:
                    with budget.waiting():
                        time.sleep(budget.pause(error))
                    stream.close()
                    stream = self._open_stream(feed, window.size)
                    for message in window.unanswered():
                        stream.send(message)
        finally:
            stream.close()

    def _open_stream(self, feed: Feed[Item, Result], in_flight: int) -> Stream:
        stream = Stream(getattr(self._stub, feed.method), self._metadata, self.address, in_flight)
        for message in feed.opening:
            stream.send(message)
        feed.tell(stream.interrupt)
        return stream


class Stream:
    """One call of a stream in both directions. A thread takes answers off it, so that waiting for one can time out.

    It takes off no more than `in_flight` answers that nobody has received: a server may send any number.
    """

    def __init__(self, method: Any, metadata: requests.Metadata, address: str, in_flight: int) -> None:
        self._address = address
        self._room = threading.Semaphore(in_flight)
        self._requests: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = method(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._pump, name="phs-stream", daemon=True).start()

    def send(self, message: Message) -> None:
        self._requests.put(message)

    def interrupt(self) -> None:
        """Makes `receive` return None, now or when it is next called."""
        self._answers.put(None)

    def receive(self, budget: RetryBudget) -> Any:
        """The next answer; None where it was interrupted."""
        try:
            with budget.waiting() as left:
                answer = self._answers.get(timeout=left)
        except queue.Empty:
            raise budget.timed_out(self._address) from None
        if answer is None:
            return None
        self._room.release()
        if isinstance(answer, PhsError):
            raise answer
        return answer

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._room.release(2)  # for an answer that gRPC holds already, and then the thread sees the end of the call

    def _pump(self) -> None:
        try:
            for answer in self._call:
                self._answers.put(answer)
                self._room.acquire()
            self._answers.put(EncoderUnavailable("the server ended the stream"))
        except grpc.RpcError as error:
            self._answers.put(requests.stream_error(error, self._address))
