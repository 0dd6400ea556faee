"""A query as text, for rerankers that know texts only: Milvus's own, through `phs-milvus rerank-endpoint`.

One JSON object; arrays are base64 of little-endian float32, row-major:

    {"phs": 1, "model": FINGERPRINT, "embeddings": [P, E], "head_weights": [P, H], "shares": [P]}
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from phs_milvus.contract.errors import InvalidInput, ModelMismatch, shown
from phs_milvus.contract.types import Float32Array, ModelInfo
from phs_milvus.search.parts import Comparison

_FORMAT = 1
_FIELDS = ("embeddings", "head_weights", "shares")
# A query of 32 examples and as many counter-examples at four zooms has as many.
_MOST_PARTS = 256


def pack_query(comparison: Comparison, fingerprint: str) -> str:
    """Encodes what states are to be compared with.

    Args:
        fingerprint: of the model that encoded the query.
    """
    arrays = {name: _text(getattr(comparison, name)) for name in _FIELDS}
    return json.dumps({"phs": _FORMAT, "model": fingerprint, **arrays}, separators=(",", ":"))


def unpack_query(text: object, info: ModelInfo) -> Comparison:
    """Decodes what `pack_query` made.

    Args:
        info: the model that is to score states.

    Raises:
        InvalidInput: something else; the message says what is missing.
        ModelMismatch: a query of another model.
    """
    values = _object(text)
    if values.get("phs") != _FORMAT:
        raise InvalidInput(f"has format {shown(values.get('phs'))}; this version reads {_FORMAT}", "query")
    model = values.get("model")
    if not isinstance(model, str):
        raise InvalidInput("does not say which model encoded it", "query")
    if model != info.fingerprint:
        raise ModelMismatch(
            f"the query was encoded by a model of fingerprint {shown(model[:12])}, and states are scored here by "
            f"{info.model_id}, fingerprint {info.fingerprint[:12]}; encode the query with this model"
        )
    shares = _array(values, "shares", 1).ravel()
    if not 1 <= len(shares) <= _MOST_PARTS:
        raise InvalidInput(f"has {len(shares)} parts; send 1 to {_MOST_PARTS}", "query")
    found = {"embeddings": info.embedding_size, "head_weights": info.heads}
    arrays = {name: _array(values, name, width) for name, width in found.items()}
    for name, array in arrays.items():
        if len(array) != len(shares):
            raise InvalidInput(f"has {len(array)} rows of {name} for {len(shares)} shares", "query")
    return Comparison(arrays["embeddings"], arrays["head_weights"], shares)


def _object(text: object) -> dict[str, Any]:
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidInput(
            f"is no packed query: {shown(text, 40)!r}; FocusedSearch.ranker makes them",
            "query",
        )
    return values


def _text(array: Float32Array) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _array(values: dict[str, Any], name: str, width: int) -> Float32Array:
    text = values.get(name)
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None or len(data) % (4 * width):
        raise InvalidInput(f"{name} must be base64 of rows of {width} little-endian float32 values", "query")
    array = np.frombuffer(data, "<f4").reshape(-1, width).astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidInput(f"{name} holds NaN or infinity", "query")
    return array
