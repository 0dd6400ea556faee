"""One call of a stream in both directions, whose answers can be waited for with a time limit."""

from __future__ import annotations

import queue
import threading
from typing import Any

import grpc
from google.protobuf.message import Message

from phs_milvus.client import requests
from phs_milvus.client.bulk import RetryBudget
from phs_milvus.contract.errors import EncoderUnavailable, PhsError


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

    def receive(self, budget: RetryBudget) -> Any:
        try:
            with budget.waiting() as left:
                answer = self._answers.get(timeout=left)
        except queue.Empty:
            raise budget.timed_out(self._address) from None
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
