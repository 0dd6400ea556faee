"""Creates collections, and replaces a collection by a new one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.milvus.attach import OWN_EMBEDDING, OWN_STATE
from phs_milvus.milvus.connection import DataType, FieldSchema, MilvusClient, check_server, is_lite
from phs_milvus.milvus.options import CONSISTENCY_LEVELS
from phs_milvus.milvus.rows import ModelRecord

_ID, _DIGEST = "id", "digest"

# For FLOAT_VECTOR. Milvus Lite takes any name, and searches as if there were no index.
INDEX_TYPES = (
    *("AUTOINDEX", "FLAT", "HNSW", "HNSW_SQ", "HNSW_PQ", "HNSW_PRQ", "IVF_FLAT", "IVF_SQ8", "IVF_PQ", "IVF_RABITQ"),
    *("SCANN", "DISKANN", "GPU_CAGRA", "GPU_IVF_FLAT", "GPU_IVF_PQ", "GPU_BRUTE_FORCE"),
)
# What Milvus 2.3 wants to be told; later versions have such values themselves.
_GRAPH, _LISTS = {"M": 16, "efConstruction": 200}, {"nlist": 128}
_INDEX_PARAMS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("HNSW", "HNSW_SQ", "HNSW_PQ", "HNSW_PRQ"), _GRAPH),
    **dict.fromkeys(("IVF_FLAT", "IVF_SQ8", "IVF_PQ", "IVF_RABITQ", "SCANN", "GPU_IVF_FLAT", "GPU_IVF_PQ"), _LISTS),
}
_NAMED_IN_ADD_FIELD = ("name", "type", "is_primary", "auto_id")


@dataclass(frozen=True, eq=False)
class CreateOptions:
    """How a collection is to be made; see `FocusedCollection.create`, whose arguments these are."""

    index_type: str = "AUTOINDEX"
    index_params: Mapping[str, Any] | None = None
    fields: Sequence[FieldSchema] = ()
    partition_key_field: str | None = None
    num_partitions: int | None = None
    num_shards: int | None = None
    consistency_level: str | None = None
    properties: Mapping[str, Any] | None = None
    enable_dynamic_field: bool = True
    id_max_length: int = 1024


def create(client: MilvusClient, name: str, record: ModelRecord, options: CreateOptions) -> None:
    """Creates an empty collection; `check` has found nothing wrong."""
    text = record.to_json()
    schema = client.create_schema(auto_id=False, enable_dynamic_field=options.enable_dynamic_field, description=text)
    schema.add_field(_ID, DataType.VARCHAR, is_primary=True, max_length=options.id_max_length)
    schema.add_field(OWN_EMBEDDING, DataType.FLOAT_VECTOR, dim=record.embedding_size)
    text_length = state_codec.text_length(record.hidden_size, record.state_format)
    schema.add_field(OWN_STATE, DataType.VARCHAR, max_length=text_length)
    schema.add_field(_DIGEST, DataType.VARCHAR, max_length=64)
    for field in options.fields:
        given = {key: value for key, value in field.to_dict().items() if key not in _NAMED_IN_ADD_FIELD}
        if field.name == options.partition_key_field:
            given["is_partition_key"] = True
        schema.add_field(field.name, field.dtype, **given.pop("params", {}), **given)
    index = client.prepare_index_params()
    params = {**_INDEX_PARAMS.get(options.index_type, {}), **(options.index_params or {})}
    index.add_index(OWN_EMBEDDING, index_type=options.index_type, metric_type="COSINE", params=params)
    wanted = {
        "num_partitions": options.num_partitions,
        "num_shards": options.num_shards,
        "consistency_level": options.consistency_level,
    }
    # Milvus Lite forgets the description and keeps properties; servers keep both.
    properties = {**(options.properties or {}), "phs": text}
    given = {key: value for key, value in wanted.items() if value is not None}
    client.create_collection(name, schema=schema, properties=properties, **given)
    try:
        # There is nothing to index yet, so nothing to wait for.
        client.create_index(name, index, sync=False)
    except BaseException:
        client.drop_collection(name)
        raise


def check(client: MilvusClient, name: str, record: ModelRecord, options: CreateOptions) -> None:
    """Raises InvalidInput for a value that Milvus refuses or leaves out, CollectionError for a state that no row can
    hold."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise InvalidInput(
            f"a collection's name has letters, digits and underscores, got {shown(name)!r}", "collection"
        )
    if options.index_type not in INDEX_TYPES:
        raise InvalidInput(f"is {', '.join(INDEX_TYPES)}, got {options.index_type!r}", "index_type")
    if not 1 <= options.id_max_length <= 65_535:
        raise InvalidInput(f"id_max_length is 1 to 65535, got {options.id_max_length}", "id_max_length")
    if (length := state_codec.text_length(record.hidden_size, record.state_format)) > state_codec.MAX_TEXT:
        raise CollectionError(
            f"{record.model_id!r} has hidden size {record.hidden_size}; its states have {length:,} characters in "
            f"{record.state_format}, and a row can hold {state_codec.MAX_TEXT:,}"
        )
    if options.consistency_level not in (None, *CONSISTENCY_LEVELS):
        raise InvalidInput(
            f"is {', '.join(CONSISTENCY_LEVELS)} or None, got {options.consistency_level!r}", "consistency_level"
        )
    _check_fields(client, options)
    if "phs" in (options.properties or {}):
        raise InvalidInput("'phs' is where the collection remembers its model", "properties")
    if any(key.startswith("mmap.") for key in options.properties or {}):
        check_server(client, (2, 4), "mmap", "properties")


def _check_fields(client: MilvusClient, options: CreateOptions) -> None:
    names = [_ID, OWN_EMBEDDING, OWN_STATE, _DIGEST]
    for field in options.fields:
        if not isinstance(field, FieldSchema):
            raise InvalidInput(f"are pymilvus.FieldSchema, got {type(field).__name__}", "fields")
        if field.name in names:
            raise InvalidInput(f"{field.name!r} is there already", "fields")
        names.append(field.name)
        for what, since in (("nullable", (2, 5)), ("default_value", (2, 5)), ("mmap_enabled", (2, 4))):
            if {**field.to_dict(), **field.params}.get(what) not in (None, False):
                check_server(client, since, f"field {field.name!r}: {what}", "fields")
    key = options.partition_key_field
    if key is not None and key not in names[4:]:
        raise InvalidInput(f"is one of `fields`, got {key!r}", "partition_key_field")


def replace(client: MilvusClient, name: str, record: ModelRecord, options: CreateOptions) -> None:
    """Puts an empty collection in the place of the one called `name`; aliases of that name go on to mean it.

    The old one is renamed away, and dropped only when the new one has its name: whatever fails, no row is lost.

    Raises:
        CollectionError: `name` is an alias: what it stands for is not what was named.
    """
    real = client.describe_collection(name)["collection_name"]
    if real != name:
        raise CollectionError(
            f"{name!r} is an alias of the collection {real!r}, which is not overwritten under another name; "
            f"name {real!r} itself, or drop the alias first"
        )
    aliases = _aliases_of(client, name)
    new, old = (f"{name[:200]}_{kind}_{uuid.uuid4().hex}" for kind in ("new", "old"))
    create(client, new, record, options)
    try:
        client.rename_collection(name, old)
        client.rename_collection(new, name)
    except BaseException:
        if not client.has_collection(name):
            client.rename_collection(old, name)
        client.drop_collection(new)
        raise
    for alias in aliases:
        client.alter_alias(name, alias)
    client.drop_collection(old)


def _aliases_of(client: MilvusClient, name: str) -> list[str]:
    # Milvus Lite leaves them out of the description; a server's list is of all collections in some versions.
    found = client.list_aliases(name) if is_lite(client) else client.describe_collection(name)
    return list(found.get("aliases") or [])
