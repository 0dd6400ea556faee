"""Messages of the contract <-> our types: tensors and model info both ways, requests, and the answers a server writes.

Reading validates, because a message may come from anyone: every `InvalidInput` raised here names the field. What the
client reads of answers is in phs_milvus.client.answers, which checks them against the request and the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import (
    Encoding,
    Explanation,
    Float16Array,
    Float32Array,
    Focus,
    Limits,
    MaskRuns,
    ModelInfo,
    RerankInputs,
)

_DTYPES: dict[int, np.dtype] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
}
# Products of larger numbers leave float32; real head weights are at most the number of heads, real lengths are 1.
_MOST_WEIGHT = 1e4
_LENGTHS = 1e-10, 1e10
# Bytes of a message of scores that are not scores.
_SCORES_OVERHEAD = 1024
# The smallest limit on a message's bytes that a server may have.
LEAST_MESSAGE_BYTES = 65_536
_MOST_OUTPUTS = 16

# --- tensors ---------------------------------------------------------------------------------------------------------


def tensor_to_pb(array: npt.NDArray[np.floating]) -> pb.Tensor:
    """float32 or float16 of any shape -> Tensor."""
    code = pb.DTYPE_FLOAT16 if array.dtype == np.float16 else pb.DTYPE_FLOAT32
    data = np.ascontiguousarray(array, dtype=_DTYPES[code]).tobytes()
    return pb.Tensor(dtype=code, shape=array.shape, data=data)


def tensor_from_pb(tensor: pb.Tensor, field: str, dtype: type, shape: Sequence[int | None]) -> npt.NDArray[Any]:
    """Tensor -> read-only array over the message's own bytes.

    Args:
        field: the name that errors use.
        dtype: np.float32 or np.float16; values of another dtype are refused, not converted.
        shape: the expected shape, with None for dimensions of any size.

    Raises:
        InvalidInput: the dtype or the shape is another one, the number of bytes does not fit the shape, or a value is
            not finite.
    """
    found = _DTYPES.get(tensor.dtype)
    if found != np.dtype(dtype):
        name = pb.Dtype.Name(tensor.dtype) if tensor.dtype in pb.Dtype.values() else tensor.dtype
        raise InvalidInput(f"expected {np.dtype(dtype).name}, got dtype {name}", field)
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    if len(tensor.shape) > len(shape):  # not listed: a message can hold millions of sizes
        raise InvalidInput(f"expected shape [{wanted}], got {len(tensor.shape)} dimensions", field)
    actual = list(tensor.shape)
    if len(actual) != len(shape) or any(w is not None and w != a for w, a in zip(shape, actual, strict=True)):
        raise InvalidInput(f"expected shape [{wanted}], got {actual}", field)
    size = found.itemsize
    for length in actual:
        size *= length
    if len(tensor.data) != size:
        raise InvalidInput(f"shape {actual} needs {size} bytes, got {len(tensor.data)}", field)
    array = np.frombuffer(tensor.data, dtype=found).reshape(actual)
    if not np.isfinite(array).all():
        raise InvalidInput("holds NaN or infinity", field)
    return array


# --- requests --------------------------------------------------------------------------------------------------------


def encode_request(
    image: bytes,
    mask: MaskRuns | None,
    focus: Focus,
    *,
    embedding: bool = True,
    state: bool = False,
    head_weights: bool = False,
    timings: bool = False,
    attention: bool = False,
    expected_fingerprint: str = "",
) -> pb.EncodeRequest:
    """Builds an EncodeRequest; the flags say which outputs the response should hold."""
    flags = [
        (embedding, pb.OUTPUT_EMBEDDING),
        (state, pb.OUTPUT_STATE),
        (head_weights, pb.OUTPUT_HEADS),
        (timings, pb.OUTPUT_TIMINGS),
        (attention, pb.OUTPUT_ATTENTION),
    ]
    return pb.EncodeRequest(
        image=image,
        mask=_mask_to_pb(mask),
        focus=_focus_to_pb(focus),
        outputs=[output for wanted, output in flags if wanted],
        expected_fingerprint=expected_fingerprint,
    )


def explain_request(
    image: bytes, mask: MaskRuns | None, focus: Focus, expected_fingerprint: str = ""
) -> pb.ExplainRequest:
    """Builds an ExplainRequest."""
    return pb.ExplainRequest(
        image=image,
        mask=_mask_to_pb(mask),
        focus=_focus_to_pb(focus),
        expected_fingerprint=expected_fingerprint,
    )


def rerank_request(
    embeddings: Float32Array, head_weights: Float32Array, states: Float16Array, expected_fingerprint: str = ""
) -> pb.RerankRequest:
    """Builds a RerankRequest from embeddings [Q, E], head weights [Q, H] and states [K, 2, D]."""
    return pb.RerankRequest(
        embeddings=tensor_to_pb(embeddings),
        head_weights=tensor_to_pb(head_weights),
        states=tensor_to_pb(states),
        expected_fingerprint=expected_fingerprint,
    )


def rerank_inputs(request: pb.RerankRequest, info: ModelInfo) -> RerankInputs:
    """Validates a RerankRequest.

    Raises:
        InvalidInput: a tensor does not fit the model, numbers are too large to compute with, or the scores do not fit
            into one message.
    """
    embeddings = tensor_from_pb(request.embeddings, "embeddings", np.float32, [None, info.embedding_size])
    if not len(embeddings):
        raise InvalidInput("no query", "embeddings")
    weights = tensor_from_pb(request.head_weights, "head_weights", np.float32, [len(embeddings), info.heads])
    largest = float(np.abs(weights).max())
    if largest > _MOST_WEIGHT:
        raise InvalidInput(f"holds {largest:g}; use weights from -{_MOST_WEIGHT:g} to {_MOST_WEIGHT:g}", "head_weights")
    lengths = np.sqrt(np.einsum("qe,qe->q", embeddings, embeddings, dtype=np.float64))
    wrong = np.flatnonzero((lengths < _LENGTHS[0]) | (lengths > _LENGTHS[1]))
    if len(wrong):
        raise InvalidInput(
            f"query {wrong[0]} has length {lengths[wrong[0]]:g}; l2-normalise the embeddings (lengths from "
            f"{_LENGTHS[0]:g} to {_LENGTHS[1]:g} are taken)",
            "embeddings",
        )
    states = tensor_from_pb(request.states, "states", np.float16, [None, 2, info.hidden_size])
    scores = (info.limits.message_bytes - _SCORES_OVERHEAD) // np.dtype(np.float32).itemsize
    if len(embeddings) * len(states) > scores:
        raise InvalidInput(
            f"{len(states)} states for {len(embeddings)} queries make more scores than fit into one message; send at "
            f"most {scores // len(embeddings)} states for so many queries, and split the rest into other requests",
            "states",
        )
    return RerankInputs(embeddings, weights, states)


def _mask_to_pb(mask: MaskRuns | None) -> pb.Mask | None:
    return None if mask is None else pb.Mask(width=mask.width, height=mask.height, runs=mask.runs.tolist())


def _focus_to_pb(focus: Focus) -> pb.Focus:
    message = pb.Focus(attention_shift=focus.attention_shift, zoom=focus.single_zoom, fovea=focus.fovea)
    if focus.heads_on == "all":
        message.all_heads = True
    elif focus.heads_on is not None:
        message.heads_on = focus.heads_on
    return message


def mask_from_pb(request: pb.EncodeRequest | pb.ExplainRequest) -> MaskRuns | None:
    """The mask of a request, None where it has none; not yet checked against the image."""
    if not request.HasField("mask"):
        return None
    mask = request.mask
    return MaskRuns(mask.width, mask.height, np.fromiter(mask.runs, np.uint32, len(mask.runs)))


def focus_from_pb(request: pb.EncodeRequest | pb.ExplainRequest, model_heads: int) -> Focus:
    """The focus of a request.

    Raises:
        InvalidInput: more heads than the model has, or a number out of range.
    """
    focus = request.focus
    heads_on: int | Literal["all"] | None = None
    if focus.WhichOneof("heads") == "all_heads":
        heads_on = "all" if focus.all_heads else None
    elif focus.WhichOneof("heads") == "heads_on":
        heads_on = focus.heads_on
        if not 1 <= heads_on <= model_heads:
            raise InvalidInput(
                f"heads_on is {heads_on}, but the model has {model_heads} heads; use 1 to {model_heads}", "focus"
            )
    # Which heads stage one of a search keeps is not the server's business.
    return Focus(heads_on, attention_shift=focus.attention_shift, zoom=focus.zoom, fovea=focus.fovea, ann_heads=None)


def check_outputs(outputs: Sequence[int]) -> None:
    """Refuses a request that asks for what there is not.

    Raises:
        InvalidInput: an unknown output, or more of them than anybody needs.
    """
    if len(outputs) > _MOST_OUTPUTS:
        raise InvalidInput(f"{len(outputs)} entries; name each output once, {_MOST_OUTPUTS} at most", "outputs")
    for output in outputs:
        if output == pb.OUTPUT_UNSPECIFIED or output not in pb.Output.values():
            known = ", ".join(name for name, value in pb.Output.items() if value)
            raise InvalidInput(f"{output} is not a known output; use {known}", "outputs")


def stream_request(item: int, request: pb.EncodeRequest) -> pb.EncodeStreamRequest:
    """One item of EncodeStream."""
    return pb.EncodeStreamRequest(id=item, request=request)


# --- responses -------------------------------------------------------------------------------------------------------


def encoding_to_pb(encoding: Encoding, outputs: Sequence[int]) -> pb.EncodeResponse:
    """Encoding -> EncodeResponse with the outputs that were asked for; an empty list asks for the embedding."""
    wanted = set(outputs) or {pb.OUTPUT_EMBEDDING}
    response = pb.EncodeResponse(width=encoding.width, height=encoding.height)
    if pb.OUTPUT_EMBEDDING in wanted and encoding.embedding is not None:
        response.embedding.CopyFrom(tensor_to_pb(encoding.embedding))
    if pb.OUTPUT_STATE in wanted and encoding.state is not None:
        response.state.CopyFrom(tensor_to_pb(encoding.state))
    if pb.OUTPUT_HEADS in wanted:
        if encoding.head_scores is not None:
            response.head_scores.CopyFrom(tensor_to_pb(encoding.head_scores))
        if encoding.head_weights is not None:
            response.head_weights.CopyFrom(tensor_to_pb(encoding.head_weights))
    if pb.OUTPUT_TIMINGS in wanted and encoding.timings is not None:
        t = encoding.timings
        response.timings.CopyFrom(pb.Timings(decode_ms=t.decode_ms, queue_ms=t.queue_ms, compute_ms=t.compute_ms))
    if pb.OUTPUT_ATTENTION in wanted and encoding.attention is not None:
        response.attention.CopyFrom(tensor_to_pb(encoding.attention))
    return response


def stream_error(item: int, code: int, message: str) -> pb.EncodeStreamResponse:
    """The answer to an item that failed; `code` is a google.rpc.Code number."""
    return pb.EncodeStreamResponse(id=item, error=pb.ItemError(code=code, message=message))


def explanation_to_pb(explanation: Explanation) -> pb.ExplainResponse:
    """Explanation -> ExplainResponse."""
    response = pb.ExplainResponse(
        attention=tensor_to_pb(explanation.attention),
        head_weights=tensor_to_pb(explanation.head_weights),
        width=explanation.width,
        height=explanation.height,
        region=pb.Region(**dict(zip(_REGION_FIELDS, explanation.region, strict=True))),
    )
    if explanation.mask is not None:
        response.mask.CopyFrom(tensor_to_pb(explanation.mask))
    if explanation.head_scores is not None:
        response.head_scores.CopyFrom(tensor_to_pb(explanation.head_scores))
    return response


_REGION_FIELDS = ("x0", "y0", "x1", "y1")
_INFO_FIELDS = [name for name in ModelInfo.__dataclass_fields__ if name != "limits"]
_LIMIT_FIELDS = list(Limits.__dataclass_fields__)


def info_to_pb(info: ModelInfo) -> pb.ModelInfo:
    """ModelInfo -> message; the field names are the same."""
    limits = pb.Limits(**{name: getattr(info.limits, name) for name in _LIMIT_FIELDS})
    return pb.ModelInfo(limits=limits, **{name: getattr(info, name) for name in _INFO_FIELDS})


def info_from_pb(message: pb.ModelInfo) -> ModelInfo:
    """Message -> ModelInfo."""
    limits = Limits(**{name: getattr(message.limits, name) for name in _LIMIT_FIELDS})
    return ModelInfo(limits=limits, **{name: getattr(message, name) for name in _INFO_FIELDS})
