"""Reads a server's answers and trusts none of them: the server may be broken or hostile, or another program.

Every value is checked against the request and the model before a caller sees it: shape, dtype, finite numbers, range.
A wrong value is an EncoderError that names the server and the field. Fields that were not asked for are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from phs_milvus.client.bulk import Window
from phs_milvus.client.requests import wrong_answer
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    EncoderBusy,
    EncoderError,
    EncoderUnavailable,
    InvalidInput,
    PhsError,
    error_from_status,
)
from phs_milvus.contract.location import LocatedBox, LocateTarget, Location
from phs_milvus.contract.types import Encoding, Explanation, Float32Array, ModelInfo, Timings

TRANSIENT = (EncoderUnavailable, EncoderBusy)

# How far rounding in half precision may take a share or a norm beyond 1.
_ROUNDING = 0.05
# No model and no image has larger sizes or longer names; nothing is allocated for those that claim to.
_LARGEST_SIZE = 2**16
_LONGEST_TEXT = 4096
_LARGEST_SIDE = 2**31 - 1
_PRECISIONS = ("float32", "bfloat16", "float16")
_MOST_FORMATS = 64
Answer: TypeAlias = "pb.EncodeResponse | pb.ReadoutResponse | pb.RerankResponse | pb.Location"
Result = TypeVar("Result")
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def encodings(response: pb.EncodeResponse, request: pb.EncodeRequest, info: ModelInfo, address: str) -> list[Encoding]:
    """One Encoding for each prompt of `request`, from a server of model `info`; their arrays are read-only.

    Raises:
        EncoderError: a field that was asked for is missing, or its value cannot be right.
    """
    masks = wire.has_mask(request)
    with _blaming(address):
        if not request.prompts:
            return [_encoding(response, request, request, info, masks[0])]
        if len(response.encodings) != len(masks):
            raise InvalidInput(f"has {len(response.encodings)} entries for {len(masks)} prompts", "encodings")
        return [
            _encoding(part, prompt, request, info, has_mask)
            for part, prompt, has_mask in zip(response.encodings, request.prompts, masks, strict=True)
        ]


def _encoding(
    response: pb.EncodeResponse,
    prompt: pb.EncodeRequest | pb.Prompt,
    request: pb.EncodeRequest,
    info: ModelInfo,
    has_mask: bool,
) -> Encoding:
    asked = set(request.outputs) or {pb.OUTPUT_EMBEDDING}
    _check_size(response, prompt.mask if has_mask else None)
    region = None
    if response.HasField("region"):
        region = wire.region_from_pb(response.region, response.width, response.height)
    parts: dict[str, Any] = dict.fromkeys(("embedding", "state", "head_scores", "head_weights", "timings"))
    if pb.OUTPUT_EMBEDDING in asked:
        parts["embedding"] = _unit(response, "embedding", info.embedding_size)
    if pb.OUTPUT_STATE in asked:
        parts["state"] = _tensor(response, "state", np.float16, [2, info.hidden_size])
    if pb.OUTPUT_HEADS in asked:
        parts["head_weights"] = _within(
            _tensor(response, "head_weights", np.float32, [info.heads]), "head_weights", 0, info.heads
        )
        if has_mask:
            parts["head_scores"] = _shares(response, "head_scores", [info.heads])
    if pb.OUTPUT_ATTENTION in asked:
        parts["attention"] = _shares(response, "attention", [info.heads, *_grid(info)])
    if pb.OUTPUT_MASK in asked and has_mask:
        parts["mask"] = _shares(response, "mask", _grid(info))
    if pb.OUTPUT_REGION_FEATURE in asked and has_mask:
        parts["region_feature"] = _unit(response, "region_feature", info.hidden_size)
    if pb.OUTPUT_TIMINGS in asked:
        parts["timings"] = _timings(response)
    return Encoding(**parts, width=response.width, height=response.height, region=region)


def explanation(encoding: Encoding, address: str) -> Explanation:
    """The Explanation in an Encoding that holds all it needs.

    Raises:
        EncoderError: the server did not say what part of the image the grids span.
    """
    if encoding.region is None:
        raise wrong_answer(address, "region: is missing")
    assert encoding.attention is not None and encoding.head_weights is not None
    return Explanation(
        attention=encoding.attention,
        mask=encoding.mask,
        head_scores=encoding.head_scores,
        head_weights=encoding.head_weights,
        width=encoding.width,
        height=encoding.height,
        region=encoding.region,
    )


def location(response: pb.LocateResponse, target: LocateTarget, info: ModelInfo, address: str) -> Location:
    """Where a server of model `info` found `target` in an image; raises as `encodings`."""
    found = response.location
    with _blaming(address):
        _check_size(found, None)
        evidence = _tensor(found, "evidence", np.float32, _grid(info))
        for field, high in (("peak_x", found.width), ("peak_y", found.height)):
            if not 0 <= getattr(found, field) <= high:
                raise InvalidInput(f"is {getattr(found, field)} in an image of {high} pixels", field)
        if not 1 <= len(found.boxes) <= target.limit:
            raise InvalidInput(f"has {len(found.boxes)} entries, not 1 to {target.limit}", "boxes")
        for field, value in (
            ("score", found.score),
            ("match", found.match),
            *(("boxes", b.score) for b in found.boxes),
        ):
            if not abs(value) <= 1 + _ROUNDING:
                raise InvalidInput(f"holds {value}, not -1 to 1", field)
        return Location(
            evidence=evidence,
            peak=(found.peak_x, found.peak_y),
            boxes=tuple(
                LocatedBox(wire.region_from_pb(box.region, found.width, found.height), box.score) for box in found.boxes
            ),
            score=found.score,
            match=found.match,
            width=found.width,
            height=found.height,
        )


def scores(response: pb.RerankResponse, request: pb.RerankRequest, address: str) -> Float32Array:
    """float32 [Q, K]: one score for each query and state of `request`.

    Raises:
        EncoderError: another shape or dtype, or a score that is not from -1 to 1.
    """
    shape = [request.embeddings.shape[0], request.states.shape[0]]
    with _blaming(address):
        return _within(_tensor(response, "scores", np.float32, shape), "scores", -1, 1)


def embeddings(response: pb.ReadoutResponse, request: pb.ReadoutRequest, info: ModelInfo, address: str) -> Float32Array:
    """float32 [K, E]: the embedding of each state of `request`.

    Raises:
        EncoderError: another shape or dtype, or an embedding that is not of length 1.
    """
    shape = [request.states.shape[0], info.embedding_size]
    with _blaming(address):
        found = _tensor(response, "embeddings", np.float32, shape)
        lengths = np.linalg.norm(found, axis=1)
        if not (np.abs(lengths - 1) <= _ROUNDING).all():
            raise InvalidInput(f"holds one of length {lengths[np.abs(lengths - 1).argmax()]:.3g}", "embeddings")
        return found


def model_info(message: pb.ModelInfo, address: str) -> ModelInfo:
    """The server's model and limits.

    Raises:
        EncoderError: a number or a name that no model has.
    """
    with _blaming(address):
        for field in ("model_id", "model_type", "fingerprint", "precision"):
            text = getattr(message, field)
            if len(text) > _LONGEST_TEXT or not text.isprintable():
                raise InvalidInput(f"is not a name: {len(text)} characters, {text[:40]!r} first", field)
        if not message.fingerprint:
            raise InvalidInput("is empty", "fingerprint")
        if message.precision not in _PRECISIONS:
            raise InvalidInput(f"is {message.precision[:40]!r}, not one of {', '.join(_PRECISIONS)}", "precision")
        for field in ("heads", "hidden_size", "embedding_size", "grid_height", "grid_width", "image_size"):
            if not 1 <= getattr(message, field) <= _LARGEST_SIZE:
                raise InvalidInput(f"is {getattr(message, field)}, not 1 to {_LARGEST_SIZE}", field)
        if message.hidden_size % message.heads:
            raise InvalidInput(f"is {message.heads}, which does not divide hidden_size {message.hidden_size}", "heads")
        for field in ("grid_height", "grid_width"):
            if getattr(message, field) > message.image_size:
                raise InvalidInput(f"is {getattr(message, field)} for {message.image_size} pixels", field)
        if not 1 <= message.default_heads <= message.heads:
            raise InvalidInput(f"is {message.default_heads}, not 1 to {message.heads}", "default_heads")
        if len(message.state_formats) > _MOST_FORMATS:
            raise InvalidInput(f"has {len(message.state_formats)} entries", "state_formats")
        for field, least in (("image_bytes", 1), ("image_pixels", 1), ("message_bytes", wire.LEAST_MESSAGE_BYTES)):
            if getattr(message.limits, field) < least:
                raise InvalidInput(f"is {getattr(message.limits, field)}, not at least {least}", f"limits.{field}")
        return wire.info_from_pb(message)


def record(
    window: Window[Result],
    response: pb.EncodeStreamResponse | pb.LocateResponse,
    read: Callable[[Any], Result] | None,
    address: str,
) -> bool:
    """Records the answer to an item of a stream in the window, and returns False where it was answered before.

    A wrong answer becomes the error of its item.

    Args:
        read: the result in the answer to a message, which it is given; None where `response` holds an error.

    Raises:
        EncoderUnavailable, EncoderBusy: the server is closing or full; the unanswered items should be sent again.
        EncoderError: the item was never sent, or the answer holds neither a result nor an error.
    """
    with _blaming(address):
        message = window.message(response.id)
        if response.WhichOneof("result") is None:
            raise InvalidInput("is missing", "result")
    if message is None:
        return False
    result: Result | PhsError
    if read is None:
        result = error_from_status(_CODE_NAMES.get(response.error.code, "UNKNOWN"), response.error.message)
        if isinstance(result, TRANSIENT):
            raise result
    else:
        try:
            result = read(message)
        except EncoderError as wrong:
            result = wrong
    window.answer(response.id, result)
    return True


@contextmanager
def _blaming(address: str) -> Iterator[None]:
    """Turns an InvalidInput about a field into an EncoderError about the server that sent it."""
    try:
        yield
    except InvalidInput as error:
        raise wrong_answer(address, f"{error.field}: {error}") from None


def _check_size(response: pb.EncodeResponse | pb.Location, mask: pb.Mask | None) -> None:
    """Checks that the image's size is positive and, where there is a mask, the mask's."""
    for field in ("width", "height"):
        size = getattr(response, field)
        if not 1 <= size <= _LARGEST_SIDE:
            raise InvalidInput(f"is {size} pixels", field)
        if mask is not None and size != getattr(mask, field):
            raise InvalidInput(f"is {size}, but the image has {getattr(mask, field)} pixels", field)


def _grid(info: ModelInfo) -> list[int]:
    return [info.grid_height, info.grid_width]


def _unit(response: Answer, field: str, size: int) -> Float32Array:
    """A float32 vector of length 1."""
    vector: Float32Array = _tensor(response, field, np.float32, [size])
    if abs(float(np.linalg.norm(vector)) - 1) > _ROUNDING:
        raise InvalidInput(f"has length {np.linalg.norm(vector):.3g} instead of 1", field)
    return vector


def _tensor(response: Answer, field: str, dtype: type, shape: list[int]) -> npt.NDArray[Any]:
    if not response.HasField(field):
        raise InvalidInput("is missing", field)
    return wire.tensor_from_pb(getattr(response, field), field, dtype, shape)


def _shares(response: Answer, field: str, shape: list[int]) -> Float32Array:
    """A float32 tensor of numbers from 0 to 1."""
    return _within(_tensor(response, field, np.float32, shape), field, 0, 1)


def _within(array: Float32Array, field: str, low: int, high: int) -> Float32Array:
    if array.size and not (low - _ROUNDING <= array.min() and array.max() <= high * (1 + _ROUNDING)):
        raise InvalidInput(f"spans {array.min():.3g} to {array.max():.3g}, not {low} to {high}", field)
    return array


def _timings(response: pb.EncodeResponse) -> Timings:
    if not response.HasField("timings"):
        raise InvalidInput("is missing", "timings")
    timings = Timings(response.timings.decode_ms, response.timings.queue_ms, response.timings.compute_ms)
    if not all(0 <= value < float("inf") for value in vars(timings).values()):
        raise InvalidInput(f"is {timings}", "timings")
    return timings
