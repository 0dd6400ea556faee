"""Finds out which field of a collection holds what, whoever made the collection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError
from phs_milvus.contract.types import Float32Array
from phs_milvus.milvus.connection import DataType, MilvusClient
from phs_milvus.milvus.rows import ModelRecord

# Wide enough for embeddings that were stored in half precision at some time.
NORM_TOLERANCE = 0.01


def remembered(description: dict[str, Any]) -> ModelRecord | None:
    """The model in a collection's description; None where it records none."""
    # Properties can be changed (`remember`), a description cannot.
    texts = (dict(description.get("properties") or {}).get("phs"), description.get("description"))
    return next((record for text in texts if text and (record := ModelRecord.from_json(text))), None)


@dataclass(frozen=True)
class Layout:
    """Which field of a collection holds what.

    Attributes:
        id, embedding: names of the primary key's and of the embedding's field.
        state: name of the state's field; None where the states are in a side collection.
        id_max_length: UTF-8 bytes that an id may have; None for an INT64 primary key.
        auto_id: whether Milvus generates the ids.
        digest: name of the digest's field; None where the collection has no place for one.
        others: the remaining fields of the schema.
        vectors: those of `others` that hold vectors, dense, binary or sparse.
        dynamic: whether rows may have fields that are not in the schema.
        metric: "COSINE", "IP" or "L2".
        partition_key: whether a field of the row says which partition it is in.
        digest_is_dynamic: whether the digest is no field of the schema.
    """

    id: str
    id_max_length: int | None
    auto_id: bool
    embedding: str
    state: str | None
    digest: str | None
    others: tuple[str, ...]
    vectors: tuple[str, ...]
    dynamic: bool
    metric: str
    partition_key: bool
    digest_is_dynamic: bool = False


def read(
    client: MilvusClient,
    description: dict[str, Any],
    embedding: str | None,
    state: str | None,
    model: ModelRecord | None,
) -> Layout:
    """Finds the fields of a collection and checks that they can hold embeddings and states of `model`.

    Args:
        embedding: None: the one field of vectors that has the model's size.
        state: None: the states are elsewhere.

    Raises:
        CollectionError: a field is missing, or has another type or size; the message says what is needed.
    """
    dim = model.embedding_size if model else 0
    text_length = state_codec.text_length(model.hidden_size, model.state_format) if model else 0
    name = description["collection_name"]
    fields = {field["name"]: field for field in description["fields"]}
    has = ", ".join(f"{key} {DataType(field['type']).name}" for key, field in fields.items())
    embedding = embedding or _only_vectors(name, fields, dim, has)
    needs = [(embedding, DataType.FLOAT_VECTOR, "dim", dim, "an embedding")]
    if state is not None:
        needs.append((state, DataType.VARCHAR, "max_length", text_length, "a PHS state"))
    for key, kind, parameter, size, what in needs:
        field = fields.get(key)
        if field is None or field["type"] != kind:
            raise CollectionError(
                f"collection {name!r} has no field {key!r} of type {kind.name} for {what}; it has {has}. "
                "FocusedCollection.create makes both, and attach takes other names, or keeps the states elsewhere"
            )
        found = int(field["params"][parameter])
        if model and (found < size or (parameter == "dim" and found != size)):
            raise CollectionError(
                f"collection {name!r}: field {key!r} has {parameter} {found}, but the model needs {size}"
            )
    key_field = next(field for field in fields.values() if field.get("is_primary"))
    dynamic = bool(description.get("enable_dynamic_field"))
    digest = fields.get("digest")
    others = tuple(key for key in fields if key not in (key_field["name"], embedding, state, "digest"))
    return Layout(
        id=key_field["name"],
        id_max_length=int(key_field["params"]["max_length"]) if key_field["type"] == DataType.VARCHAR else None,
        auto_id=bool(description.get("auto_id") or key_field.get("auto_id")),
        embedding=embedding,
        state=state,
        digest="digest" if (digest is None and dynamic) or (digest and digest["type"] == DataType.VARCHAR) else None,
        others=others,
        vectors=tuple(key for key in others if DataType(fields[key]["type"]).name.endswith("VECTOR")),
        dynamic=dynamic,
        metric=_metric(client, name, embedding),
        partition_key=any(field.get("is_partition_key") for field in fields.values()),
        digest_is_dynamic=digest is None and dynamic,
    )


def _only_vectors(name: str, fields: dict[str, Any], dim: int, has: str) -> str:
    """The field of vectors of this size, if there is exactly one.

    Raises:
        CollectionError: there is none, or there are several.
    """
    found = [
        key
        for key, field in fields.items()
        if field["type"] == DataType.FLOAT_VECTOR and dim in (0, int(field["params"]["dim"]))
    ]
    if len(found) == 1:
        return found[0]
    of_size = f" of dimension {dim}" if dim else ""
    if not found:
        raise CollectionError(f"collection {name!r} has no FLOAT_VECTOR field{of_size} for embeddings; it has {has}")
    raise CollectionError(
        f"collection {name!r} has several FLOAT_VECTOR fields{of_size}: {', '.join(found)}; name the one that holds "
        "the model's embeddings (embedding_field, --embedding-field)"
    )


def _metric(client: MilvusClient, name: str, embedding: str) -> str:
    for index in client.list_indexes(name):
        found = client.describe_index(name, index)
        if found and found.get("field_name") == embedding:
            metric = str(found.get("metric_type"))
            if metric not in ("COSINE", "IP", "L2"):
                raise CollectionError(
                    f"collection {name!r}: {embedding!r} is indexed by {metric}; use COSINE, IP or L2"
                )
            return metric
    raise CollectionError(f"collection {name!r} has no index on {embedding!r}: create one, by COSINE")


def check_norms(name: str, field: str, metric: str, embeddings: Float32Array) -> None:
    """Raises CollectionError unless all stored embeddings, float32 [n, E], are of norm 1.

    With other norms, IP and L2 rank by length, and their scores are not cosine similarities.
    """
    norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)  # NaN is wrong too
    if wrong.any():
        spread = " to ".join(dict.fromkeys(f"{norm:.3g}" for norm in (norms.min(), norms.max())))
        raise not_of_norm_1(
            name, field, metric, f"{wrong.sum()} of {len(norms)} rows looked at are not, norms {spread}"
        )


def not_of_norm_1(name: str, field: str, metric: str, found: str) -> CollectionError:
    """The error for embeddings that cannot be searched by their metric."""
    return CollectionError(
        f"collection {name!r}: {field!r} is indexed by {metric}, which needs embeddings of norm 1, and {found}; "
        "index the field by COSINE, or store the embeddings divided by their norm"
    )
