"""Aliases: names that mean one collection today and another one tomorrow."""

from __future__ import annotations

from phs_milvus.contract.errors import CollectionError, shown
from phs_milvus.milvus.connection import MilvusClient, translated_errors


def swap_alias(client: MilvusClient, alias: str, collection: str) -> str | None:
    """Makes an alias mean a collection, in one step of Milvus; returns what it meant before, None where it is new.

    Raises:
        CollectionError: there is no such collection, or one has the alias as its name.
    """
    with translated_errors(f"cannot make {shown(alias)!r} mean {shown(collection)!r}"):
        if not client.has_collection(collection):
            raise CollectionError(f"there is no collection {shown(collection)!r} for {shown(alias)!r} to mean")
        if not client.has_collection(alias):
            client.create_alias(collection, alias)
            return None
        before = str(client.describe_collection(alias)["collection_name"])
        if before == alias:
            raise CollectionError(f"{shown(alias)!r} is a collection, not an alias; rename it, then make the alias")
        client.alter_alias(collection, alias)
        return before
