"""Creates collections, and replaces a collection by a new one."""

from __future__ import annotations

import re
import uuid

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.milvus.connection import DataType, MilvusClient, is_lite
from phs_milvus.milvus.rows import ModelRecord


def create(client: MilvusClient, name: str, record: ModelRecord, index_type: str, id_max_length: int) -> None:
    """Creates an empty collection; the arguments are those of `FocusedCollection.create`, which has checked them."""
    text = record.to_json()
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True, description=text)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=id_max_length)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=record.embedding_size)
    text_length = state_codec.text_length(record.hidden_size, record.state_format)
    schema.add_field("phs_state", DataType.VARCHAR, max_length=text_length)
    schema.add_field("digest", DataType.VARCHAR, max_length=64)
    index = client.prepare_index_params()
    params = {"M": 16, "efConstruction": 200} if index_type == "HNSW" else {}
    index.add_index("embedding", index_type=index_type, metric_type="COSINE", params=params)
    # Milvus Lite forgets the description and keeps properties; servers keep both.
    client.create_collection(name, schema=schema, properties={"phs": text})
    try:
        # There is nothing to index yet, so nothing to wait for.
        client.create_index(name, index, sync=False)
    except BaseException:
        client.drop_collection(name)
        raise


def check(name: str, record: ModelRecord, index_type: str, id_max_length: int) -> None:
    """Raises InvalidInput for a value that Milvus refuses, CollectionError for a state that no row can hold."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise InvalidInput(
            f"a collection's name has letters, digits and underscores, got {shown(name)!r}", "collection"
        )
    if index_type not in ("AUTOINDEX", "HNSW", "FLAT"):
        raise InvalidInput(f"index_type is AUTOINDEX, HNSW or FLAT, got {index_type!r}", "index_type")
    if not 1 <= id_max_length <= 65_535:
        raise InvalidInput(f"id_max_length is 1 to 65535, got {id_max_length}", "id_max_length")
    if (length := state_codec.text_length(record.hidden_size, record.state_format)) > state_codec.MAX_TEXT:
        raise CollectionError(
            f"{record.model_id!r} has hidden size {record.hidden_size}; its states have {length:,} characters in "
            f"{record.state_format}, and a row can hold {state_codec.MAX_TEXT:,}"
        )


def replace(client: MilvusClient, name: str, record: ModelRecord, index_type: str, id_max_length: int) -> None:
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
    create(client, new, record, index_type, id_max_length)
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
