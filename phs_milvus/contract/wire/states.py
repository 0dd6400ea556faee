"""Requests about stored states: readout and reranking."""

from __future__ import annotations

import numpy as np

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.int8_states import MAX_SCALE, Int8States, blocks_of, wrong_scales
from phs_milvus.contract.types import MOST_READOUTS, Float32Array, ModelInfo, RerankInputs, States
from phs_milvus.contract.wire.tensors import tensor_from_pb, tensor_to_pb

# Products of larger numbers leave float32; real head weights are at most the number of heads, real lengths are 1.
_MOST_WEIGHT = 1e4
_LENGTHS = 1e-10, 1e10
# Bytes of a message that are not its tensor.
_OVERHEAD = 1024


def readout_request(states: States, head_weights: Float32Array, expected_fingerprint: str = "") -> pb.ReadoutRequest:
    """Builds a ReadoutRequest from K states and head weights [K, H] or [1, H]."""
    return pb.ReadoutRequest(
        **_states_to_pb(states),
        head_weights=tensor_to_pb(head_weights),
        expected_fingerprint=expected_fingerprint,
    )


def readout_inputs(request: pb.ReadoutRequest, info: ModelInfo) -> tuple[States, Float32Array]:
    """Validates a ReadoutRequest: (K states, head weights [K, H] or [1, H]).

    Raises:
        InvalidInput: a tensor does not fit the model, numbers are too large to compute with, more readouts than one
            request may ask for, or more embeddings than fit into one message.
    """
    states = _states_from_pb(request, info)
    if not len(states):
        raise InvalidInput("no state", "states")
    most = min(MOST_READOUTS, (info.limits.message_bytes - _OVERHEAD) // (4 * info.embedding_size))
    if len(states) > most:
        raise InvalidInput(f"{len(states)} states; send at most {most} in one request", "states")
    weights = checked_weights(tensor_from_pb(request.head_weights, "head_weights", np.float32, [None, info.heads]))
    if len(weights) not in (1, len(states)):
        raise InvalidInput(f"{len(weights)} rows for {len(states)} states; send one for each, or one", "head_weights")
    return states, weights


def rerank_request(
    embeddings: Float32Array, head_weights: Float32Array, states: States, expected_fingerprint: str = ""
) -> pb.RerankRequest:
    """Builds a RerankRequest from embeddings [Q, E], head weights [Q, H] and K states."""
    return pb.RerankRequest(
        embeddings=tensor_to_pb(embeddings),
        head_weights=tensor_to_pb(head_weights),
        **_states_to_pb(states),
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
    checked_weights(weights)
    check_lengths(embeddings, "embeddings")
    states = _states_from_pb(request, info)
    scores = (info.limits.message_bytes - _OVERHEAD) // np.dtype(np.float32).itemsize
    if len(embeddings) * len(states) > scores:
        raise InvalidInput(
            f"{len(states)} states for {len(embeddings)} queries make more scores than fit into one message; send at "
            f"most {scores // len(embeddings)} states for so many queries, and split the rest into other requests",
            "states",
        )
    return RerankInputs(embeddings, weights, states)


def _states_to_pb(states: States) -> dict[str, pb.Tensor]:
    """The fields of a request that hold its states."""
    if isinstance(states, Int8States):
        return {"states": tensor_to_pb(states.values), "state_scales": tensor_to_pb(states.scales)}
    return {"states": tensor_to_pb(states)}


def _states_from_pb(request: pb.ReadoutRequest | pb.RerankRequest, info: ModelInfo) -> States:
    """The states of a request, over the message's own bytes: what is int8 stays so until it is computed with."""
    shape = [None, 2, info.hidden_size]
    if request.states.dtype != pb.DTYPE_INT8:
        if request.HasField("state_scales"):
            raise InvalidInput("is for states of dtype DTYPE_INT8; leave it out", "state_scales")
        return tensor_from_pb(request.states, "states", np.float16, shape)
    values = tensor_from_pb(request.states, "states", np.int8, shape)
    scales_shape = [len(values), 2, blocks_of(info.hidden_size)]
    scales = tensor_from_pb(request.state_scales, "state_scales", np.float16, scales_shape)
    if wrong_scales(scales).any():
        raise InvalidInput(f"holds one that is not from 0 to {MAX_SCALE}", "state_scales")
    return Int8States(values, scales.astype(np.float16, copy=False))


def checked_weights(weights: Float32Array) -> Float32Array:
    """The head weights, of any shape.

    Raises:
        InvalidInput: one that is too large to compute with.
    """
    largest = float(np.abs(weights).max(initial=0))
    if largest > _MOST_WEIGHT:
        raise InvalidInput(f"holds {largest:g}; use weights from -{_MOST_WEIGHT:g} to {_MOST_WEIGHT:g}", "head_weights")
    return weights


def check_lengths(vectors: Float32Array, field: str) -> None:
    """Refuses vectors [Q, any] that cannot be brought to length 1.

    Raises:
        InvalidInput: the first of them.
    """
    lengths = np.sqrt(np.einsum("qe,qe->q", vectors, vectors, dtype=np.float64))
    wrong = np.flatnonzero((lengths < _LENGTHS[0]) | (lengths > _LENGTHS[1]))
    if len(wrong):
        raise InvalidInput(
            f"query {wrong[0]} has length {lengths[wrong[0]]:g}; l2-normalise the {field} (lengths from "
            f"{_LENGTHS[0]:g} to {_LENGTHS[1]:g} are taken)",
            field,
        )
