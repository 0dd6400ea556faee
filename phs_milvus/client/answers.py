"""Reads a server's answers and trusts none of them: the server may be broken or hostile, or another program.

Every value is checked against the request and the model before a caller sees it: shape, dtype, finite numbers, range.
A wrong value is an EncoderError that names the server and the field. Fields that were not asked for are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

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
from phs_milvus.contract.types import Encoding, Explanation, Float32Array, ModelInfo, Timings

TRANSIENT = (EncoderUnavailable, EncoderBusy)

# How far rounding in half precision may take a share or a norm beyond 1.
_ROUNDING = 0.05
# No model and no image has larger sizes or longer names; nothing is allocated for those that claim to.
_LARGEST_SIZE = 2**16
_LONGEST_TEXT = 4096
_LARGEST_SIDE = 2**31 - 1
_PRECISIONS = ("float32", "bfloat16", "float16")
Answer: TypeAlias = "pb.EncodeResponse | pb.ExplainResponse | pb.RerankResponse"
_CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def encoding(response: pb.EncodeResponse, request: pb.EncodeRequest, info: ModelInfo, address: str) -> Encoding:
    """The Encoding in the answer to `request` from a server of model `info`; its arrays are read-only.

    Raises:
        EncoderError: a field that was asked for is missing, or its value cannot be right.
    """
    asked = set(request.outputs) or {pb.OUTPUT_EMBEDDING}
    with _blaming(address):
        _check_size(response, request)
        embedding = state = scores = weights = attention = timings = None
        if pb.OUTPUT_EMBEDDING in asked:
            embedding = _tensor(response, "embedding", np.float32, [info.embedding_size])
            if abs(float(np.linalg.norm(embedding)) - 1) > _ROUNDING:
                raise InvalidInput(f"has length {np.linalg.norm(embedding):.3g} instead of 1", "embedding")
        if pb.OUTPUT_STATE in asked:
            state = _tensor(response, "state", np.float16, [2, info.hidden_size])
        if pb.OUTPUT_HEADS in asked:
            scores, weights = _heads(response, request, info)
        if pb.OUTPUT_ATTENTION in asked:
            attention = _shares(response, "attention", _grids(info))
        if pb.OUTPUT_TIMINGS in asked:
            timings = _timings(response)
        return Encoding(embedding, state, scores, weights, timings, response.width, response.height, attention)


def explanation(response: pb.ExplainResponse, request: pb.ExplainRequest, info: ModelInfo, address: str) -> Explanation:
    """The Explanation in the answer to `request`; raises as `encoding`."""
    with _blaming(address):
        _check_size(response, request)
        region = (response.region.x0, response.region.y0, response.region.x1, response.region.y1)
        x0, y0, x1, y1 = region
        if not (x0 < x1 <= response.width and y0 < y1 <= response.height):
            raise InvalidInput(f"{region} is not inside the {response.width}x{response.height} image", "region")
        scores, weights = _heads(response, request, info)
        return Explanation(
            attention=_shares(response, "attention", _grids(info)),
            mask=_shares(response, "mask", _grids(info)[1:]) if request.HasField("mask") else None,
            head_scores=scores,
            head_weights=weights,
            width=response.width,
            height=response.height,
            region=region,
        )


def scores(response: pb.RerankResponse, request: pb.RerankRequest, address: str) -> Float32Array:
    """float32 [Q, K]: one score for each query and state of `request`.

    Raises:
        EncoderError: another shape or dtype, or a score that is not from -1 to 1.
    """
    shape = [request.embeddings.shape[0], request.states.shape[0]]
    with _blaming(address):
        return _within(_tensor(response, "scores", np.float32, shape), "scores", -1, 1)


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
        for field, least in (("image_bytes", 1), ("image_pixels", 1), ("message_bytes", wire.LEAST_MESSAGE_BYTES)):
            if getattr(message.limits, field) < least:
                raise InvalidInput(f"is {getattr(message.limits, field)}, not at least {least}", f"limits.{field}")
        return wire.info_from_pb(message)


def record(window: Window, response: pb.EncodeStreamResponse, info: ModelInfo | None, address: str) -> bool:
    """Records an answer of a bulk encode in the window, and returns False where its item was answered before.

    A wrong answer becomes the error of its item.

    Args:
        info: the server's model where `response` holds an encoding, None where it holds an error.

    Raises:
        EncoderUnavailable, EncoderBusy: the server is closing or full; the unanswered items should be sent again.
        EncoderError: the item was never sent, or the answer holds neither an encoding nor an error.
    """
    with _blaming(address):
        request = window.request(response.id)
        if response.WhichOneof("result") is None:
            raise InvalidInput("is missing", "result")
    if request is None:
        return False
    result: Encoding | PhsError
    if info is None:
        result = error_from_status(_CODE_NAMES.get(response.error.code, "UNKNOWN"), response.error.message)
        if isinstance(result, TRANSIENT):
            raise result
    else:
        try:
            result = encoding(response.response, request, info, address)
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


def _check_size(
    response: pb.EncodeResponse | pb.ExplainResponse, request: pb.EncodeRequest | pb.ExplainRequest
) -> None:
    """Checks that the image's size is positive and, where there is a mask, the mask's."""
    for field in ("width", "height"):
        size = getattr(response, field)
        if not 1 <= size <= _LARGEST_SIDE:
            raise InvalidInput(f"is {size} pixels", field)
        if request.HasField("mask") and size != getattr(request.mask, field):
            raise InvalidInput(f"is {size}, but the image has {getattr(request.mask, field)} pixels", field)


def _heads(
    response: pb.EncodeResponse | pb.ExplainResponse,
    request: pb.EncodeRequest | pb.ExplainRequest,
    info: ModelInfo,
) -> tuple[Float32Array | None, Float32Array]:
    """(head_scores [H], None without a mask; head_weights [H], from 0 to H)."""
    weights = _tensor(response, "head_weights", np.float32, [info.heads])
    _within(weights, "head_weights", 0, info.heads)
    return _shares(response, "head_scores", [info.heads]) if request.HasField("mask") else None, weights


def _grids(info: ModelInfo) -> list[int]:
    return [info.heads, info.grid_height, info.grid_width]


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
