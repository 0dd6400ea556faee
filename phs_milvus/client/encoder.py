"""`Encoder`: the synchronous client of the embedding server.

    with Encoder("127.0.0.1:50051") as encoder:
        encoding = encoder.encode("street.jpg", Box(40, 60, 180, 220))
        encoding.embedding                                  # float32 [E], focused on what is in the box

With several addresses, work goes to the server with the least to do:

    Encoder(["10.0.0.5:50051", "10.0.0.6:50051"], tls=Tls(ca="ca.pem"), token="...")

A picture that is pointed at again and again is sent once (phs_milvus.client.pictures):

    picture = encoder.open("street.jpg")
    picture.encode(Box(300, 60, 380, 200))              # milliseconds

Every call has a deadline. Only UNAVAILABLE and RESOURCE_EXHAUSTED are retried, with jittered pauses: single calls by
gRPC itself (https://grpc.io/docs/guides/retry), bulk encodes by resending the unanswered items. Every answer is checked
against its request and the model before it is returned (phs_milvus.client.answers).
Create an Encoder after forking, not before: gRPC channels do not survive a fork.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

import grpc
import numpy as np

from phs_milvus.client import answers, requests
from phs_milvus.client.balance import ELSEWHERE
from phs_milvus.client.bulk import Window
from phs_milvus.client.feeds import EncodeFeed, Keyed, LazyImage, LocateFeed
from phs_milvus.client.pictures import Attempts, Delivery, Opened, on_pictures
from phs_milvus.client.requests import DEFAULT_IN_FLIGHT, EXPLAINED, Aim, Outputs
from phs_milvus.client.stream import StreamingEncoder
from phs_milvus.contract import telemetry
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage, ImageSource, load_image
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.scanning import Key, Scanned
from phs_milvus.contract.types import Encoding, Explanation, Float32Array, Focus, ModelInfo, States
from phs_milvus.pointing.prompts import Prompt

Mark = TypeVar("Mark")


class Encoder(StreamingEncoder):
    """A connection to one embedding server. Thread-safe; close it, or use it as a context manager.

    Args:
        address: "host:port", or several of them: each call goes to the one with the fewest calls in progress, and the
            images of a bulk encode go over a stream to each, to the one that should answer first
            (phs_milvus.client.balance). One that fails is left alone for a moment and tried again. A picture that was
            opened stays with the one its digest chooses. With one name that resolves to several hosts, calls go to
            them in turn, and a bulk encode stays with one.
        timeout: seconds that a single call may take, retries included; for a bulk encode, seconds without any answer.
        expected_fingerprint: if given, every call fails with ModelMismatch unless the server runs this model.
        tls: True for TLS with the system's certificate authorities; a Tls to name files; None for plaintext.
        token: sent with every call as "authorization: Bearer TOKEN". Without TLS, anyone on the way can read it.

    Raises:
        InvalidInput: an address cannot be used, or a TLS file cannot be read.
        EncoderUnavailable: several addresses were given and the name of one does not resolve.
    """

    _insecure_channel = staticmethod(grpc.insecure_channel)
    _secure_channel = staticmethod(grpc.secure_channel)

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
        return self._learn(self._anywhere("GetModelInfo", pb.GetModelInfoRequest(), timeout or self._timeout))

    @property
    def info(self) -> ModelInfo:
        """The server's model. The first use calls `fetch_info`, over the network, and may raise as it does."""
        return self._info or self.fetch_info()

    def open(self, image: ImageSource) -> Picture:
        """Reads an image that will be pointed at several times; nothing is sent yet.

        Raises:
            ImageError: the image cannot be used.
        """
        source = load_image(image)
        return Picture(source.data, source.width, source.height, source.path, encoder=self)

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
            image: a path, the bytes of an image file, a PIL image, a uint8 [height, width(, 3 or 4)] array, or a
                Picture from `open`.
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
        return self._encode(load_image(image), [Aim(prompt, focus)], outputs, timeout)[0]

    def encode_prompts(
        self,
        image: ImageSource,
        prompts: Sequence[Prompt | None],
        *,
        focus: Focus | Sequence[Focus] = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> list[Encoding]:
        """Encodes one image under several prompts, which together cost hardly more than one.

        Args:
            prompts: at least one, each as for `encode`.
            focus: one for all prompts, or one for each. Every crop that a zoom asks for is an image of its own.

        Returns:
            one Encoding for each prompt, in their order.

        Raises:
            InvalidInput: no prompt, or another number of focuses; and what `encode` raises.
        """
        aims = requests.aims_of(prompts, focus)
        source = load_image(image)
        most = requests.most_prompts(source)
        if len(aims) > most and not isinstance(source, Opened):
            source = self.open(source)  # whose bytes need not go with every request
        parts = (
            self._encode(source, aims[start : start + most], outputs, timeout) for start in range(0, len(aims), most)
        )
        return [encoding for part in parts for encoding in part]

    @overload
    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: None = None,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[Encoding | PhsError]: ...

    @overload
    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: Iterable[Mark],
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[tuple[Mark, Encoding | PhsError]]: ...

    def encode_many(
        self,
        images: Iterable[ImageSource],
        prompts: Iterable[Prompt | None] | None = None,
        *,
        keys: Iterable[Any] | None = None,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[Any]:
        """Encodes many images over one stream and yields the results in the order of `images`.

        A bad image yields its error in place of an Encoding, and the others go on. If the connection breaks, it is
        opened again and the unanswered items are resent: every image gives exactly one result. For a feed that may
        have to wait for its next image, see `BulkSession`.

        Args:
            images, focus, outputs: as `encode` takes them.
            prompts: one for each image; None: none has a prompt.
            keys: whatever the caller knows each image by; then pairs (key, result) are yielded.
            in_flight: images in progress at a time; `images` is read only so far ahead of the results.
            timeout: seconds to wait without any answer; None: the Encoder's own.

        Raises:
            EncoderError: no answer for `timeout` seconds, or an answer to something that was never sent.
            InvalidInput: there are not as many prompts, or keys, as images, or `in_flight` is below 1.
        """
        rows = requests.rows(images, prompts, keys)
        feed = EncodeFeed((Keyed(key, image, [Aim(prompt, focus)]) for image, prompt, key in rows), outputs)
        for key, found in self._streamed(feed, Window(in_flight), timeout):
            result = found if isinstance(found, PhsError) else found[0]
            yield result if keys is None else (key, result)

    def encode_aims(
        self,
        items: Iterable[tuple[ImageSource, Sequence[Aim]]],
        *,
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[list[Encoding] | PhsError]:
        """`encode_many` for images under several prompts each: up to 64 of them, which share the work on the image.

        Yields one list of Encodings for each image, in the order of its aims, or the image's error.
        """
        feed = EncodeFeed((Keyed(None, image, aims) for image, aims in items), outputs)
        return (result for _, result in self._streamed(feed, Window(in_flight), timeout))

    def locate(
        self,
        target: LocateTarget,
        images: Iterable[LazyImage],
        *,
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float | None = None,
    ) -> Iterator[Location | PhsError]:
        """Finds where in each image the thing is that a query looks at; yields in the order of `images`.

        Args:
            target: what to look for; see `phs_milvus.search.locating.target_of`.
            images: as `encode` takes them, or functions that give such an image when it is its turn. What is raised for
                one, as a PhsError, is its result.
            in_flight, timeout: as for `encode_many`.

        Raises:
            InvalidInput: the target does not fit the model.
            EncoderError: as `encode_many`.
        """
        feed = LocateFeed(images, target, self._expected)
        return (result for _, result in self._streamed(feed, Window(in_flight), timeout))

    def readout(self, states: States, head_weights: Float32Array, *, timeout: float | None = None) -> Float32Array:
        """The embeddings of stored states under other head weights.

        Args:
            states: [K, 2, D], converted to float16; or Int8States, half the message.
            head_weights: [K, H], one set for each state, or [H], the same for all; converted to float32.
            timeout: seconds that this call may take, however many requests a large input is split into; None: the
                Encoder's own for each of them.

        Returns:
            float32 [K, E], of norm 1.

        Raises:
            InvalidInput: the shapes fit neither each other nor the model.
            ModelMismatch: the server does not run the expected model.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        parts, left = [], self._deadline_of_parts(timeout)
        states = requests.sendable(states, self.info)
        for request in requests.readout_requests(states, head_weights, self._expected, self.info):
            answer = self._anywhere("Readout", request, left())
            parts.append(answers.embeddings(answer, request, self.info, self.address))
        return np.concatenate(parts)

    def rerank(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        states: States,
        *,
        timeout: float | None = None,
    ) -> Float32Array:
        """Exact Query-DB PHS scores: each candidate's state is read out with each query's head weights.

        Args:
            embeddings: [Q, E], of the queries; converted to float32.
            head_weights: [Q, H], of the queries; converted to float32.
            states: [K, 2, D], of the candidates, converted to float16; or Int8States, half the message
                (`state.unpack_stored` gives what rows hold). A server that does not read them is sent float16.
            timeout: seconds that this call may take, however many requests a large input is split into; None: the
                Encoder's own for each of them.

        Returns:
            float32 [Q, K], cosine similarity.

        Raises:
            InvalidInput: the shapes fit neither each other nor the model.
            ModelMismatch: the server does not run the expected model.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        left = self._deadline_of_parts(timeout)
        if isinstance(states, Int8States):
            states = requests.sendable(states, self.info)
        scores, messages = requests.rerank_requests(embeddings, head_weights, states, self._expected, self._limits)
        for block, request in messages:
            answer = self._anywhere("Rerank", request, left())
            scores[block] = answers.scores(answer, request, self.address)
        return scores

    def scan(
        self,
        embeddings: Float32Array,
        head_weights: Float32Array,
        *,
        limit: int = 10,
        keys: Sequence[Key] | None = None,
        shares: Float32Array | None = None,
        timeout: float | None = None,
    ) -> Scanned:
        """`rerank` of every state in the file that the server was started with (`phs-server --states`); the best.

        Args:
            embeddings: [Q, E], of at most 64 queries; converted to float32.
            head_weights: [Q, H], of the queries; converted to float32.
            limit: keys in a ranking, 1 to 16,384.
            keys: the only rows that are looked at, by their primary keys, 4,194,304 at most; those that the file does
                not have are ignored. None: all rows.
            shares: [R, Q]: a ranking for each row of it, by the sum of the queries' scores times these shares. None: a
                ranking for each query.
            timeout: seconds that this call may take; None: the Encoder's own. It takes time in proportion to the rows
                times the distinct head weights.

        Raises:
            InvalidInput: the shapes fit neither each other nor the model, an argument that cannot be used, or the
                server has no file of states.
            ModelMismatch: the server does not run the expected model.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        request = requests.scan_request(embeddings, head_weights, limit, keys, shares, self._expected, self._limits)
        answer = self._call(self._stub.Scan, request, timeout)
        return answers.scanned(answer, request, keys, self.address)

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
        encoding = self.encode(image, prompt, focus=focus, outputs=EXPLAINED, timeout=timeout)
        return answers.explanation(encoding, self.address)

    def close(self) -> None:
        """Closes the connection; calls in progress fail."""
        self._closed = True
        for channel in list(self._channels.values()):
            channel.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(
        self, source: EncodedImage, aims: Sequence[Aim], outputs: Outputs, timeout: float | None
    ) -> list[Encoding]:
        """One Encode call, as often as it takes."""
        delivery, left = Delivery(source, self._servers, self._balance), self._deadline(timeout)
        while True:
            by_digest = delivery.by_digest
            request = requests.encode_request(source, aims, outputs, self._expected, self._limits, by_digest)
            try:
                answer = self._attempt(delivery, "Encode", request, left())
            except (PictureNotHeld, *ELSEWHERE) as error:
                delivery.failed(error)
                continue
            delivery.delivered()
            return answers.encodings(answer, request, self.info, self.address)

    def _info_of(self, server: str | None) -> ModelInfo:
        if self._info is not None:
            return self._info
        return self._learn(self._call(self._stub_of(server).GetModelInfo, pb.GetModelInfoRequest(), self._timeout))

    def _anywhere(self, name: str, request: Any, timeout: float) -> Any:
        """A call that any server can answer, as often as it takes."""
        attempts, left = Attempts(self._balance.order()), self._deadline(timeout)
        while True:
            try:
                return self._attempt(attempts, name, request, left())
            except ELSEWHERE as error:
                attempts.failed(error)

    def _attempt(self, attempts: Attempts, name: str, request: Any, left: float) -> Any:
        with self._balance.calling(attempts.server):
            return self._call(getattr(self._stub_of(attempts.server), name), request, attempts.share(left))

    def _call(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return method(request, timeout=timeout or self._timeout, metadata=telemetry.with_trace(self._metadata))
        except grpc.RpcError as error:
            raise requests.translate(error, self.address) from None


@dataclass(frozen=True, eq=False)
class Picture(Opened):
    """An image opened by `Encoder.open`, in the manner of segment-anything's set_image and predict.

    Its methods are those of the Encoder without their first argument, the image.

    Attributes:
        width, height: pixels of the upright image (EXIF orientation applied), the frame of every prompt.
        encoder: the Encoder that opened it.
    """

    encoder: Encoder = field(kw_only=True, repr=False)

    encode = on_pictures(Encoder.encode)
    encode_prompts = on_pictures(Encoder.encode_prompts)
    explain = on_pictures(Encoder.explain)
