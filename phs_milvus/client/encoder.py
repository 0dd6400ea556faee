"""`Encoder`: the synchronous client of the embedding server.

    with Encoder("127.0.0.1:50051") as encoder:
        encoding = encoder.encode("street.jpg", Box(40, 60, 180, 220))
        encoding.embedding                                  # float32 [E], focused on what is in the box

With several addresses, the calls go to the servers in turn:

    Encoder(["10.0.0.5:50051", "10.0.0.6:50051"], tls=Tls(ca="ca.pem"), token="...")

Every call has a deadline. Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried, with jittered pauses: single calls by
gRPC itself (https://grpc.io/docs/guides/retry), bulk encodes by resending the unanswered items. Every answer is checked
against its request and the model before it is returned (phs_milvus.client.answers).
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
        timeout: seconds that a single call may take, retries included; for a bulk encode, seconds without any answer.
        expected_fingerprint: if given, every call fails with ModelMismatch unless the server runs this model.
        tls: True for TLS with the system's certificate authorities; a Tls to name files; None for plaintext.
        token: sent with every call as "authorization: Bearer TOKEN". Without TLS, anyone on the way can read it.

    Raises:
        InvalidInput: an address cannot be used, or a TLS file cannot be read.
        EncoderUnavailable: several addresses were given and the name of one does not resolve.
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
        # Not known until `fetch_info` is called, by the user or to check the first answer; until then, the defaults.
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

    @property
    def timeout(self) -> float:
        """Seconds that a call may take where it is given no timeout of its own."""
        return self._timeout

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
        """The server's model. The first use calls `fetch_info`, over the network, and may raise as it does."""
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
            prompt: the thing to focus on, in pixels of the upright image (EXIF orientation applied), origin top-left;
                None for the model's own embedding of the whole image.
            focus: how to focus on the prompt; ignored without one.
            outputs: what the result holds besides the embedding.
            timeout: seconds this call may take; None: the Encoder's own.

        Returns:
            `embedding` float32 [E] of norm 1, and what `outputs` names.

        Raises:
            ImageError, PromptError, InvalidInput: the image, the prompt or the focus cannot be used.
            ModelMismatch: the server does not run the expected model.
            EncoderError: the server could not answer, or its answer was wrong; see phs_milvus.contract.errors.
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
        """Encodes many images over one stream and yields the results in the order of `images`.

        A bad image yields its error in place of an Encoding, and the others go on. If the connection breaks, it is
        opened again and the unanswered items are resent: every image gives exactly one result.

        Args:
            images, focus, outputs: as `encode` takes them.
            prompts: one for each image; None: none has a prompt.
            in_flight: images in progress at a time; `images` is read only so far ahead of the results.
            timeout: seconds to wait without any answer; None: the Encoder's own.

        Raises:
            EncoderError: no answer for `timeout` seconds, or an answer to something that was never sent.
            InvalidInput: there are more images than prompts or the reverse, or `in_flight` is below 1.
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
        """Exact Query-DB PHS scores: each candidate's state is read out with each query's head weights.

        Args:
            embeddings: [Q, E], of the queries; converted to float32.
            head_weights: [Q, H], of the queries; converted to float32.
            states: [K, 2, D], of the candidates; converted to float16.
            timeout: seconds that each request may take; large inputs are split into several.

        Returns:
            float32 [Q, K], cosine similarity.

        Raises:
            InvalidInput: the shapes fit neither each other nor the model.
            ModelMismatch: the server does not run the expected model.
            EncoderError: the server could not answer, or its answer was wrong.
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
        focus: Focus = Focus.paper(),
        timeout: float | None = None,
    ) -> Explanation:
        """Shows which patches each attention head attends to, and which heads the prompt selects.

        Takes and raises what `encode` does.
        """
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
        self._requests: queue.SimpleQueue[pb.EncodeStreamRequest | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[pb.EncodeStreamResponse | PhsError] = queue.SimpleQueue()
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
