"""What both clients share: building requests, and gRPC errors as ours. Does no I/O on the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import grpc
import numpy as np

from phs_milvus.client.bulk import Window
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    EncoderBusy,
    EncoderError,
    EncoderUnavailable,
    ImageError,
    InvalidInput,
    ModelMismatch,
    PhsError,
    error_from_status,
    shown,
)
from phs_milvus.contract.images import ImageSource, load_image
from phs_milvus.contract.proxies import proxy_note
from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus, Limits, ModelInfo
from phs_milvus.pointing.prompts import Prompt, to_runs

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 30.0
DEFAULT_IN_FLIGHT = 64

Metadata = tuple[tuple[str, str], ...]
# Rows and columns of a [Q, K] array.
Block = tuple[slice, slice]

Request = TypeVar("Request", pb.EncodeRequest, pb.ExplainRequest)

# Of one Rerank request: seconds even on two CPU cores with D=1024, well within a call's timeout.
_READOUTS = 100_000
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
TRANSIENT = (EncoderUnavailable, EncoderBusy)


@dataclass(frozen=True)
class Outputs:
    """What an Encoding shall hold beside the embedding.

    Attributes:
        state: the PHS state, for storing with the image.
        heads: head scores and weights.
        timings: milliseconds in each stage of the server.
        attention: what each head looks at, as in Explanation.
    """

    state: bool = False
    heads: bool = False
    timings: bool = False
    attention: bool = False


# --- requests ---------------------------------------------------------------------------------------------------------


def pairs(
    images: Iterable[ImageSource], prompts: Iterable[Prompt | None] | None
) -> Iterator[tuple[ImageSource, Prompt | None]]:
    """Images with their prompts, read one by one.

    Raises:
        InvalidInput: one of the two ends before the other.
    """
    if prompts is None:
        yield from ((image, None) for image in images)
        return
    missing = object()
    for image, prompt in zip_longest(images, prompts, fillvalue=missing):
        if image is missing or prompt is missing:
            raise InvalidInput("must be as many as there are images", "prompts")
        yield image, prompt  # type: ignore[misc]


def admit(
    window: Window,
    image: ImageSource,
    prompt: Prompt | None,
    focus: Focus,
    outputs: Outputs,
    expected: str,
    limits: Limits,
) -> pb.EncodeStreamRequest | None:
    """Takes an item into the window; the message to send, or None where it failed before that."""
    try:
        return window.add(encode_request(image, prompt, focus, outputs, expected, limits))
    except PhsError as error:
        window.add_failed(error)
        return None


def encode_request(
    image: ImageSource, prompt: Prompt | None, focus: Focus, outputs: Outputs, expected: str, limits: Limits
) -> pb.EncodeRequest:
    source = load_image(image)
    request = wire.encode_request(
        source.data,
        to_runs(prompt, source.width, source.height),
        focus,
        state=outputs.state,
        heads=outputs.heads,
        timings=outputs.timings,
        attention=outputs.attention,
        expected_fingerprint=expected,
    )
    return _sized(request, limits)


def explain_request(
    image: ImageSource, prompt: Prompt | None, focus: Focus, expected: str, limits: Limits
) -> pb.ExplainRequest:
    source = load_image(image)
    runs = to_runs(prompt, source.width, source.height)
    return _sized(wire.explain_request(source.data, runs, focus, expected), limits)


def bound_to(expected: str, info: ModelInfo) -> str:
    """The fingerprint that a client which expects `expected`, or nothing yet, is bound to.

    Raises:
        ModelMismatch: the server runs another model.
    """
    if expected not in ("", info.fingerprint):
        raise ModelMismatch(
            f"expected the model with fingerprint {expected[:12]}, the server runs {info.model_id} with "
            f"{info.fingerprint[:12]}"
        )
    return info.fingerprint


def _sized(request: Request, limits: Limits) -> Request:
    """Checked here because gRPC reports an oversized message as RESOURCE_EXHAUSTED, like a full queue, and ends a bulk
    encode for one such item."""
    if len(request.image) > limits.image_bytes:
        raise ImageError(f"has {len(request.image)} bytes; the server takes {limits.image_bytes}")
    size = request.ByteSize()
    if size > limits.message_bytes - 1024:
        raise ImageError(f"image and mask make a message of {size} bytes; {limits.message_bytes} are allowed")
    return request


def rerank_requests(
    embeddings: Float32Array, head_weights: Float32Array, states: Float16Array, expected: str, limits: Limits
) -> tuple[Float32Array, Iterator[tuple[Block, pb.RerankRequest]]]:
    """An empty [Q, K] for the scores, and requests, made one by one, with the block of it that each answer fills.

    Queries and states are split so that neither a request nor its answer is over the message limit, and so that no
    request asks for more readouts (distinct head weights x states) than _READOUTS.

    Raises:
        InvalidInput: shapes that do not fit each other.
    """
    embeddings = np.asarray(embeddings, np.float32)
    head_weights = np.asarray(head_weights, np.float32)
    states = np.asarray(states, np.float16)
    if embeddings.ndim != 2 or head_weights.ndim != 2 or len(embeddings) != len(head_weights):
        raise InvalidInput(
            f"expected embeddings [Q, E] and head_weights [Q, H], got {embeddings.shape} and {head_weights.shape}",
            "embeddings",
        )
    if states.ndim != 3 or states.shape[1] != 2 or not states.size:
        raise InvalidInput(f"expected shape [K, 2, D] with at least one state, got {states.shape}", "states")
    requests = (
        ((queries, some), wire.rerank_request(embeddings[queries], head_weights[queries], states[some], expected))
        for queries, some in _blocks(embeddings, head_weights, states, limits.message_bytes - 4096)
    )
    return np.empty((len(embeddings), len(states)), np.float32), requests


def _blocks(embeddings: Float32Array, head_weights: Float32Array, states: Float16Array, budget: int) -> Iterator[Block]:
    """Slices of queries and of states whose messages hold at most `budget` bytes, both ways."""
    query_bytes = 4 * (embeddings.shape[1] + head_weights.shape[1])
    most = max(1, budget // 2 // query_bytes)
    free = budget - min(most, len(embeddings)) * query_bytes
    step = max(1, min(len(states), free // states[0].nbytes, _READOUTS))
    most, distinct = min(most, max(1, budget // 4 // step)), max(1, _READOUTS // step)
    start, seen = 0, set()
    for query, weights in enumerate(head_weights):
        seen.add(weights.tobytes())
        if query - start == most or len(seen) > distinct:
            yield from ((slice(start, query), some) for some in _slices(len(states), step))
            start, seen = query, {weights.tobytes()}
    if len(embeddings):
        yield from ((slice(start, None), some) for some in _slices(len(states), step))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, length, step)]


# --- answers ----------------------------------------------------------------------------------------------------------


def stream_error(error: grpc.RpcError, address: str) -> PhsError:
    """What ended a stream. grpc.aio hides a lost connection behind INTERNAL where it was writing just then (grpc issue
    36066)."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return EncoderUnavailable(f"the server at {address} closed the stream")
    return translate(error, address)


def stream_answer(response: pb.EncodeStreamResponse) -> tuple[int, Encoding | PhsError]:
    """(item, result).

    Raises:
        EncoderUnavailable, EncoderBusy: the server is closing or full; the item should be sent again.
    """
    try:
        item, result = wire.stream_result_from_pb(response)
    except InvalidInput as unreadable:
        return response.id, EncoderError(f"the server's answer cannot be used: {unreadable.field} {unreadable}")
    if isinstance(result, Encoding):
        return item, result
    code, message = result
    error = error_from_status(_CODE_NAMES.get(code, "UNKNOWN"), message)
    if isinstance(error, TRANSIENT):
        raise error
    return item, error


def translate(error: grpc.RpcError, address: str) -> PhsError:
    code, details = error.code(), error.details() or ""
    where = f"the embedding server at {shown(address)}{proxy_note(address)}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC's own, for a message over the server's limit: the same code as a full queue, and final.
        return InvalidInput(f"the message is over the limit of the server at {address} ({details})", "request")
    if code is grpc.StatusCode.CANCELLED:
        # We cancel nothing that we wait for; a server that shuts down does, late in its drain.
        return EncoderUnavailable(f"the server at {address} cancelled the call: is it shutting down? ({details})")
    if code is grpc.StatusCode.UNAVAILABLE:
        details = (
            f"no answer from {where} ({shown(details)}); "
            "is it running, and does it want TLS? start one with: phs-server --model <id or directory>"
        )
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"{where} did not answer in time ({shown(details)})"
    return error_from_status(code.name, details)
