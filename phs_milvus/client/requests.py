"""What `Encoder` and `AsyncEncoder` share: building requests, and turning gRPC errors into ours. No network I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    EncoderError,
    EncoderUnavailable,
    ImageError,
    InvalidInput,
    ModelMismatch,
    PhsError,
    error_from_status,
    shown,
)
from phs_milvus.contract.images import EncodedImage, ImageSource
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.proxies import proxy_note
from phs_milvus.contract.scanning import MOST_ALLOWED, MOST_KEYS, Key
from phs_milvus.contract.types import (
    MOST_MASK_PIXELS,
    MOST_READOUTS,
    Float32Array,
    Focus,
    Limits,
    ModelInfo,
    Pointing,
    States,
)
from phs_milvus.pointing.prompts import Prompt, to_runs

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 30.0
DEFAULT_IN_FLIGHT = 64

Metadata = tuple[tuple[str, str], ...]
# Rows and columns of a [Q, K] array.
Block = tuple[slice, slice]

Answer = TypeVar("Answer")
Request = TypeVar("Request", pb.EncodeRequest, pb.LocateRequest)


@dataclass(frozen=True)
class Outputs:
    """What an Encoding holds besides the embedding.

    Attributes:
        state: the PHS state, float16 [2, D], to be stored with the image.
        head_weights: head_scores and head_weights, float32 [H] each, which reranking needs of a query.
        timings: milliseconds in each stage of the server.
        attention: the attention of each head on the patch grid, float32 [H, grid_height, grid_width].
        mask: the prompt on the patch grid, float32 [grid_height, grid_width].
        region_feature: float32 [D], which locating compares; costs one layer of the model.
    """

    state: bool = False
    head_weights: bool = False
    timings: bool = False
    attention: bool = False
    mask: bool = False
    region_feature: bool = False


EXPLAINED = Outputs(head_weights=True, attention=True, mask=True)


class Aim(NamedTuple):
    """A thing to look at in an image, None for the whole image, and how to look at it."""

    prompt: Prompt | None
    focus: Focus = Focus()


# --- requests ---------------------------------------------------------------------------------------------------------


def rows(
    images: Iterable[ImageSource], prompts: Iterable[Prompt | None] | None, keys: Iterable[Any] | None
) -> Iterator[tuple[ImageSource, Prompt | None, Any]]:
    """Puts each image beside its prompt and its key, None where there are none, and reads all of them one by one.

    Raises:
        InvalidInput: there are not as many prompts, or keys, as images.
    """
    columns = {"images": images, "prompts": prompts, "keys": keys}
    given = {name: iter(column) for name, column in columns.items() if column is not None}
    end = object()
    while True:
        row: dict[str, Any] = {name: next(column, end) for name, column in given.items()}
        for name, value in row.items():
            if (value is end) != (row["images"] is end):
                raise InvalidInput("must be as many as there are images", name)
        if row["images"] is end:
            return
        yield row["images"], row.get("prompts"), row.get("keys")


def aims_of(prompts: Sequence[Prompt | None], focus: Focus | Sequence[Focus]) -> list[Aim]:
    """Pairs prompts with one focus for all of them, or with one each.

    Raises:
        InvalidInput: there is no prompt, or the focuses are not as many.
    """
    focuses = [focus] * len(prompts) if isinstance(focus, Focus) else list(focus)
    if not prompts:
        raise InvalidInput("none given; [None] is the whole image", "prompts")
    if len(focuses) != len(prompts):
        raise InvalidInput(f"{len(focuses)} for {len(prompts)} prompts", "focus")
    return [Aim(prompt, each) for prompt, each in zip(prompts, focuses, strict=True)]


def most_prompts(image: EncodedImage) -> int:
    """How many prompts for an image one request takes."""
    return max(1, min(wire.MOST_PROMPTS, MOST_MASK_PIXELS // (image.width * image.height)))


def encode_request(
    source: EncodedImage, aims: Sequence[Aim], outputs: Outputs, expected: str, limits: Limits, by_digest: bool = False
) -> pb.EncodeRequest:
    """The request for one image under up to `wire.MOST_PROMPTS` prompts; by_digest: without its bytes."""
    if not aims:
        raise InvalidInput("none given; Aim(None) is the whole image", "prompts")
    pointings = [Pointing(to_runs(prompt, source.width, source.height), focus) for prompt, focus in aims]
    request = wire.encode_request(
        b"" if by_digest else source.data,
        pointings,
        digest=bytes.fromhex(source.digest) if by_digest else b"",
        expected_fingerprint=expected,
        **vars(outputs),
    )
    return sized(request, limits)


def bound_to(expected: str, info: ModelInfo) -> str:
    """The fingerprint that a client expects from now on: the server's, unless it expected another one.

    Args:
        expected: the fingerprint that the client expected so far; "" for none.

    Raises:
        ModelMismatch: the server runs another model.
    """
    if expected not in ("", info.fingerprint):
        raise ModelMismatch(
            f"expected the model with fingerprint {expected[:12]}, the server runs {info.model_id} with "
            f"{info.fingerprint[:12]}"
        )
    return info.fingerprint


def sized(request: Request, limits: Limits) -> Request:
    """The request, if it is within the server's limits.

    The check is made here because gRPC reports an oversized message as RESOURCE_EXHAUSTED, like a full queue, and ends
    a whole bulk encode for one such item.

    Raises:
        ImageError: too many bytes.
    """
    if len(request.image) > limits.image_bytes:
        raise ImageError(f"has {len(request.image)} bytes; the server takes {limits.image_bytes}")
    size = request.ByteSize()
    if size > limits.message_bytes - 1024:
        raise ImageError(f"image and mask make a message of {size} bytes; {limits.message_bytes} are allowed")
    return request


def rerank_requests(
    embeddings: Float32Array, head_weights: Float32Array, states: States, expected: str, limits: Limits
) -> tuple[Float32Array, Iterator[tuple[Block, pb.RerankRequest]]]:
    """Splits a rerank into requests.

    No request or answer exceeds the message limit, and no request asks for more readouts (distinct head weights x
    states) than MOST_READOUTS.

    Args:
        embeddings: [Q, E]; head_weights: [Q, H]; states: [K, 2, D] or Int8States. Arrays are converted to float32,
            float32 and float16.

    Returns:
        an uninitialised float32 [Q, K] array for the scores, and an iterator of (the block of that array which the
        answer fills, the request), which makes requests one by one.

    Raises:
        InvalidInput: shapes that do not fit each other.
    """
    embeddings = np.asarray(embeddings, np.float32)
    head_weights = np.asarray(head_weights, np.float32)
    states = _checked_states(states)
    if embeddings.ndim != 2 or head_weights.ndim != 2 or len(embeddings) != len(head_weights):
        raise InvalidInput(
            f"expected embeddings [Q, E] and head_weights [Q, H], got {embeddings.shape} and {head_weights.shape}",
            "embeddings",
        )
    # No answer over the default limit is accepted (phs_milvus.client.channels), whatever the server would send.
    budget = min(limits.message_bytes, Limits.message_bytes) - 4096
    requests = (
        ((queries, some), wire.rerank_request(embeddings[queries], head_weights[queries], states[some], expected))
        for queries, some in _blocks(embeddings, head_weights, states, budget)
    )
    return np.empty((len(embeddings), len(states)), np.float32), requests


def readout_requests(
    states: States, head_weights: Float32Array, expected: str, info: ModelInfo
) -> Iterator[pb.ReadoutRequest]:
    """Splits a readout into requests, made one by one, whose answers are to be concatenated.

    Args:
        states: [K, 2, D] or Int8States; head_weights: [K, H], or [H] for all of them. Arrays are converted to float16
            and float32.

    Raises:
        InvalidInput: shapes that do not fit each other.
    """
    states, head_weights = _checked_states(states), np.asarray(head_weights, np.float32)
    shared = head_weights.ndim == 1
    if shared:
        head_weights = head_weights[None]
    elif head_weights.ndim != 2 or len(head_weights) != len(states):
        raise InvalidInput(f"expected [{len(states)}, H] or [H], got {head_weights.shape}", "head_weights")
    budget = min(info.limits.message_bytes, Limits.message_bytes) - 4096
    largest = max(_bytes_each(states) + head_weights[0].nbytes, 4 * info.embedding_size)
    for some in _slices(len(states), max(1, min(budget // largest, MOST_READOUTS))):
        yield wire.readout_request(states[some], head_weights if shared else head_weights[some], expected)


def scan_request(
    embeddings: Float32Array,
    head_weights: Float32Array,
    limit: int,
    keys: Sequence[Key] | None,
    shares: Float32Array | None,
    expected: str,
    limits: Limits,
) -> pb.ScanRequest:
    """The request for a scan; arrays are converted to float32.

    Raises:
        InvalidInput: a limit that is not 1 to 16,384, keys of mixed types, or more of them than fit into a message.
    """
    if not 1 <= limit <= MOST_KEYS:
        raise InvalidInput(f"is 1 to {MOST_KEYS}, got {limit}", "limit")
    if keys is not None and len(keys) > MOST_ALLOWED:  # before anything is made of them
        raise InvalidInput(f"are {len(keys)}; a scan takes up to {MOST_ALLOWED}", "keys")
    arrays = (np.asarray(embeddings, np.float32), np.asarray(head_weights, np.float32))
    weighed = None if shares is None else np.asarray(shares, np.float32)
    request = wire.scan_request(*arrays, limit, keys, weighed, expected)
    size = request.ByteSize()
    if size > limits.message_bytes - 1024:
        raise InvalidInput(f"make a message of {size} bytes; {limits.message_bytes} are allowed", "keys")
    return request


def sendable(states: States, info: ModelInfo) -> States:
    """The states in a format that a server reads: one older than int8 is sent float16."""
    return states.to_float16() if isinstance(states, Int8States) and "int8" not in info.state_formats else states


def _checked_states(states: States) -> States:
    if not isinstance(states, Int8States):
        states = np.asarray(states, np.float16)
    shape = states.values.shape if isinstance(states, Int8States) else states.shape
    if len(shape) != 3 or shape[1] != 2 or 0 in shape:
        raise InvalidInput(f"expected shape [K, 2, D] with at least one state, got {shape}", "states")
    return states


def _bytes_each(states: States) -> int:
    return states.nbytes // len(states)


def _blocks(embeddings: Float32Array, head_weights: Float32Array, states: States, budget: int) -> Iterator[Block]:
    """Slices of queries and of states whose request and answer hold at most `budget` bytes each."""
    query_bytes = 4 * (embeddings.shape[1] + head_weights.shape[1])
    most = max(1, budget // 2 // query_bytes)
    free = budget - min(most, len(embeddings)) * query_bytes
    step = max(1, min(len(states), free // _bytes_each(states), MOST_READOUTS))
    most, distinct = min(most, max(1, budget // 4 // step)), max(1, MOST_READOUTS // step)
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


# --- errors -----------------------------------------------------------------------------------------------------------


def stream_error(error: grpc.RpcError, address: str) -> PhsError:
    """The error of ours for a stream that ended.

    grpc.aio reports a connection that is lost during a write as INTERNAL instead of UNAVAILABLE (grpc issue 36066).
    """
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core":
        return EncoderUnavailable(f"the server at {address} closed the stream")
    return translate(error, address)


def translate(error: grpc.RpcError, address: str) -> PhsError:
    """The error of ours for a failed call to the server at `address`."""
    code, details = error.code(), error.details() or ""
    where = f"the embedding server at {shown(address)}{proxy_note(address)}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        # gRPC's own, final although it has the code of a full queue: an answer over the client's limit, or a request
        # over the server's.
        if "CLIENT: Received" in details:
            return wrong_answer(address, details)
        return InvalidInput(f"the message is over the limit of the server at {address} ({details})", "request")
    if code is grpc.StatusCode.INTERNAL and "deserializing" in details:
        return wrong_answer(address, "not a message of the contract")
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


def wrong_answer(address: str, reason: str) -> EncoderError:
    """The error of an answer that cannot be used."""
    return EncoderError(
        f"wrong answer from the embedding server at {address}: {reason}; is it a phs-server of this version?"
    )


def readable(answer: Answer | None, address: str) -> Answer:
    """The answer of a grpc.aio call, which is None where the bytes were not a message.

    Raises:
        EncoderError: it is None.
    """
    if answer is None:
        raise wrong_answer(address, "not a message of the contract")
    return answer
