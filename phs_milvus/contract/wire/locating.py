"""Locate: what to look for, and where it was found."""

from __future__ import annotations

import numpy as np

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.location import MOST_BOXES, LocateTarget, Location
from phs_milvus.contract.types import Float32Array, ModelInfo
from phs_milvus.contract.wire.encoding import region_to_pb
from phs_milvus.contract.wire.states import check_lengths, checked_weights
from phs_milvus.contract.wire.tensors import tensor_from_pb, tensor_to_pb


def locate_query(target: LocateTarget, expected_fingerprint: str = "") -> pb.LocateRequest:
    """The first message of a Locate call."""
    query = pb.LocateQuery(limit=target.limit, threshold=target.threshold, expected_fingerprint=expected_fingerprint)
    for field in ("embedding", "head_weights", "region_feature", "all_heads_embedding"):
        array = getattr(target, field)
        if array is not None:
            getattr(query, field).CopyFrom(tensor_to_pb(array))
    return pb.LocateRequest(query=query)


def target_from_pb(query: pb.LocateQuery, info: ModelInfo) -> LocateTarget:
    """Validates what to look for; vectors are l2-normalised.

    Raises:
        InvalidInput: a tensor does not fit the model, or a number is out of range.
    """
    if query.limit > MOST_BOXES:
        raise InvalidInput(f"is {query.limit}; {MOST_BOXES} boxes are the most", "limit")
    if not 0 <= query.threshold < 1:
        raise InvalidInput(f"must be above 0 and below 1, got {query.threshold:g}", "threshold")
    weights = tensor_from_pb(query.head_weights, "head_weights", np.float32, [info.heads])
    return LocateTarget(
        embedding=_direction(query, "embedding", info.embedding_size),
        head_weights=checked_weights(weights),
        region_feature=_optional(query, "region_feature", info.hidden_size),
        all_heads_embedding=_optional(query, "all_heads_embedding", info.embedding_size),
        limit=query.limit or LocateTarget.limit,
        threshold=query.threshold or None,
    )


def locate_image(item: int, image: bytes) -> pb.LocateRequest:
    """One image of a Locate call."""
    return pb.LocateRequest(id=item, image=image)


def location_to_pb(item: int, location: Location) -> pb.LocateResponse:
    """The answer to one image."""
    boxes = [pb.LocatedBox(region=region_to_pb(box.region), score=box.score) for box in location.boxes]
    return pb.LocateResponse(
        id=item,
        location=pb.Location(
            evidence=tensor_to_pb(location.evidence),
            peak_x=location.peak[0],
            peak_y=location.peak[1],
            boxes=boxes,
            score=location.score,
            match=location.match,
            width=location.width,
            height=location.height,
        ),
    )


def locate_error(item: int, code: int, message: str) -> pb.LocateResponse:
    """The answer to an image that could not be searched; `code` is a google.rpc.Code number."""
    return pb.LocateResponse(id=item, error=pb.ItemError(code=code, message=message))


def _optional(query: pb.LocateQuery, field: str, size: int) -> Float32Array | None:
    return _direction(query, field, size) if query.HasField(field) else None


def _direction(query: pb.LocateQuery, field: str, size: int) -> Float32Array:
    vector = tensor_from_pb(getattr(query, field), field, np.float32, [size])
    check_lengths(vector[None], field)
    normed: Float32Array = vector / np.linalg.norm(vector)
    return normed
