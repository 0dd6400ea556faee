"""`Encoder`: the synchronous client of the embedding server.

    with Encoder("127.0.0.1:50051") as encoder:
        encoding = encoder.encode("street.jpg", Box(40, 60, 180, 220))
        encoding.embedding                                  # float32 [E], focused on what is in the box

With several addresses, calls go to them in turn:

    Encoder(["10.0.0.5:50051", "10.0.0.6:50051"], tls=Tls(ca="ca.pem"), token="...")

Every call has a deadline. UNAVAILABLE and RESOURCE_EXHAUSTED, and nothing else, are retried with jittered pauses, by
gRPC itself for single calls (https://grpc.io/docs/guides/retry) and by resending unanswered items in bulk.
Create an Encoder after forking, not before: gRPC channels do not survive a fork.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
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


class Encoder:
    """A connection to one embedding server. Thread-safe; close it, or use it as a context manager.

    Args:
        address: "host:port", or several of them, which are used in turn (round robin) and skipped while they do not
            answer or are not ready. A name that resolves to several hosts counts as several addresses too. A bulk
            encode stays with one of them for as long as that one answers.
        timeout: seconds a single call may take, retries included; for bulk, seconds without any answer.
        expected_fingerprint: if given, every call fails with ModelMismatch unless the server runs this model.
        tls: True for TLS with the system's certificate authorities; a Tls to name files; None for plaintext.
        token: sent with every call as "authorization: Bearer TOKEN". Without TLS it travels in the clear.

    Raises:
        InvalidInput: an address that cannot be used, or a TLS file that cannot be read.
    """

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
        # Until the server is asked, which the first answer to check does: no model, and the defaults of a server.
        self._info: ModelInfo | None = None
        self._limits = Limits()
        self._metadata = token_metadata(token)
        credentials, options = channel_credentials(tls), channel_options(address, tls)
        self._channel = (
            grpc.insecure_channel(target, options)
            if credentials is None
            else grpc.secure_channel(target, credentials, options)
        )
        self._stub = pb_grpc.FocusEncoderStub(self._channel)

    def fetch_info(self, *, timeout: float | None = None) -> ModelInfo:
        """Asks the server for its model and limits: one call over the network.

        The first encoding does this by itself, because its answer is checked against the model. From then on this
        Encoder is bound to that model: if the server comes back with another one, calls fail with ModelMismatch
        instead of mixing embeddings of two models. Images over the server's limits then fail before they are sent.

        Args:
            timeout: seconds this call may take; None: the Encoder's own.

        Raises:
            EncoderError: the server could not answer, or answered with numbers that no model has.
            ModelMismatch: the server does not run the expected model.
        """
        answer = self._call(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout)
        info = answers.model_info(answer, self.address)
        self._expected = requests.bound_to(self._expected, info)
        self._info, self._limits = info, info.limits
        return info

    @property
    def info(self) -> ModelInfo:
        """What `fetch_info` answered: the first use calls the server and may raise as it does; later uses do not."""
        return self._info or self.fetch_info()

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
            EncoderError: the server could not answer; see phs_milvus.contract.errors.
        """
        request = requests.encode_request(image, prompt, focus, outputs, self._expected, self._limits)
        answer = self._call(self._stub.Encode, request, timeout)
        return answers.encoding(answer, request, self.info, self.address)

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
            EncoderError: no answer for `timeout` seconds of waiting for one.
            InvalidInput: another number of prompts than of images.
        """
        pairs = requests.pairs(images, prompts)
        window, budget = Window(in_flight), RetryBudget(timeout or self._timeout)
        stream = _Stream(self._stub, self._metadata, self.address, in_flight)
        exhausted = False
        try:
            while True:
                while not (window.full or exhausted):
                    pair = next(pairs, None)
                    if pair is None:
                        exhausted = True
                    elif message := requests.admit(window, *pair, focus, outputs, self._expected, self._limits):
                        stream.send(message)
                yield from window.ready()
                if window.empty:
                    if exhausted:
                        return
                    budget.progress()
                    continue
                try:
                    answer = stream.receive(budget)
                    info = self.info if answer.HasField("response") else None
                    if answers.record(window, answer, info, self.address):
                        budget.progress()
                except answers.TRANSIENT as error:
                    with budget.waiting():
                        time.sleep(budget.pause(error))
                    stream.close()
                    stream = _Stream(self._stub, self._metadata, self.address, in_flight)
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
        scores, messages = requests.rerank_requests(embeddings, head_weights, states, self._expected, self._limits)
        for block, request in messages:
            answer = self._call(self._stub.Rerank, request, timeout)
            scores[block] = answers.scores(answer, request, self.address)
        return scores

    def explain(
        self,
        image: ImageSource,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        timeout: float | None = None,
    ) -> Explanation:
        """What each attention head looks at, which heads the prompt selects, and why. Raises as `encode`."""
        request = requests.explain_request(image, prompt, focus, self._expected, self._limits)
        answer = self._call(self._stub.Explain, request, timeout)
        return answers.explanation(answer, request, self.info, self.address)

    def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        self._channel.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise requests.translate(error, self.address) from None


class _Stream:
    """One EncodeStream call. A thread takes answers off it, so that waiting for one can time out.

    It takes off no more than `in_flight` answers that nobody has received: a server may send any number.
    """

    def __init__(
        self, stub: pb_grpc.FocusEncoderStub, metadata: requests.Metadata, address: str, in_flight: int
    ) -> None:
        self._address = address
        self._room = threading.Semaphore(in_flight)
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._call = stub.EncodeStream(iter(self._requests.get, None), metadata=metadata)
        threading.Thread(target=self._pump, name="phs-encode-stream", daemon=True).start()

    def send(self, message: pb.EncodeStreamRequest) -> None:
        self._requests.put(message)

    def receive(self, budget: RetryBudget) -> pb.EncodeStreamResponse:
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
