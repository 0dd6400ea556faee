"""What the fields of a collection are, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError
from phs_milvus.milvus.connection import DataType, MilvusClient
from phs_milvus.milvus.rows import ModelRecord


def remembered(description: dict[str, Any]) -> ModelRecord | None:
    """The model that a collection says it was filled with."""
    texts = (description.get("description"), dict(description.get("properties") or {}).get("phs"))
    return next((record for text in texts if text and (record := ModelRecord.from_json(text))), None)


@dataclass(frozen=True)
class Layout:
    """Which field of a collection is what.

    Attributes:
        id_max_length: UTF-8 bytes, or None for an INT64 primary key.
        auto_id: Milvus makes up the ids.
        digest: None where the collection has no place for one.
        others: the remaining fields of the schema.
        dynamic: rows may have fields that are not in the schema.
        metric: "COSINE", "IP" or "L2".
    """

    id: str
    id_max_length: int | None
    auto_id: bool
    embedding: str
    state: str
    digest: str | None
    others: tuple[str, ...]
    dynamic: bool
    metric: str


def read(
    client: MilvusClient, description: dict[str, Any], embedding: str, state: str, model: ModelRecord | None
) -> Layout:
    """Finds the fields of a collection and checks that they can hold embeddings and states of `model`.

    Raises:
        CollectionError: says what the collection has and what is needed.
    """
    dim = model.embedding_size if model else 0
    text_length = state_codec.text_length(model.hidden_size) if model else 0
    name = description["collection_name"]
    fields = {field["name"]: field for field in description["fields"]}
    has = ", ".join(f"{key} {DataType(field['type']).name}" for key, field in fields.items())
    needs = [
        (embedding, DataType.FLOAT_VECTOR, "dim", dim, "an embedding"),
        (state, DataType.VARCHAR, "max_length", text_length, "a PHS state"),
    ]
    for key, kind, parameter, size, what in needs:
        field = fields.get(key)
        if field is None or field["type"] != kind:
            raise CollectionError(
                f"collection {name!r} has no field {key!r} of type {kind.name} for {what}; it has {has}. "
                "Focused search needs both: FocusedCollection.create makes them, attach takes other names"
            )
        found = int(field["params"][parameter])
        if model and (found < size or (parameter == "dim" and found != size)):
            raise CollectionError(
                f"collection {name!r}: field {key!r} has {parameter} {found}, but the model needs {size}"
            )
    key_field = next(field for field in fields.values() if field.get("is_primary"))
    dynamic = bool(description.get("enable_dynamic_field"))
    digest = fields.get("digest")
    return Layout(
        id=key_field["name"],
        id_max_length=int(key_field["params"]["max_length"]) if key_field["type"] == DataType.VARCHAR else None,
        auto_id=bool(description.get("auto_id") or key_field.get("auto_id")),
        embedding=embedding,
        state=state,
        digest="digest" if (digest is None and dynamic) or (digest and digest["type"] == DataType.VARCHAR) else None,
        others=tuple(key for key in fields if key not in (key_field["name"], embedding, state, "digest")),
        dynamic=dynamic,
        metric=_metric(client, name, embedding),
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
