"""What the fields of a collection are: the schema that we make, and how to read somebody else's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput
from phs_milvus.milvus.connection import DataType, MilvusClient
from phs_milvus.milvus.rows import ModelRecord


def make(client: MilvusClient, name: str, record: ModelRecord, index_type: str, id_max_length: int) -> None:
    """Makes an empty collection; arguments as of `FocusedCollection.create`, checked there by `check`."""
    text = record.to_json()
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True, description=text)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=id_max_length)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=record.embedding_size)
    schema.add_field("phs_state", DataType.VARCHAR, max_length=state_codec.text_length(record.hidden_size))
    schema.add_field("digest", DataType.VARCHAR, max_length=64)
    index = client.prepare_index_params()
    params = {"M": 16, "efConstruction": 200} if index_type == "HNSW" else {}
    index.add_index("embedding", index_type=index_type, metric_type="COSINE", params=params)
    # Milvus Lite forgets the description and keeps properties; servers keep both.
    client.create_collection(name, schema=schema, properties={"phs": text})
    # There is nothing to index yet, so nothing to wait for.
    client.create_index(name, index, sync=False)


def check(name: str, record: ModelRecord, index_type: str, id_max_length: int) -> None:
    """Raises InvalidInput for what Milvus does not take, CollectionError for a state that no row can hold."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise InvalidInput(f"a collection's name has letters, digits and underscores, got {name!r}", "collection")
    if index_type not in ("AUTOINDEX", "HNSW", "FLAT"):
        raise InvalidInput(f"index_type is AUTOINDEX, HNSW or FLAT, got {index_type!r}", "index_type")
    if not 1 <= id_max_length <= 65_535:
        raise InvalidInput(f"id_max_length is 1 to 65535, got {id_max_length}", "id_max_length")
    if record.hidden_size > state_codec.MAX_HIDDEN_SIZE:
        raise CollectionError(
            f"{record.model_id!r} has hidden size {record.hidden_size}; a row can hold the state of at most "
            f"{state_codec.MAX_HIDDEN_SIZE}"
        )


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
