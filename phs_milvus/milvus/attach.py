"""Finds out how a collection can be searched: which fields hold what, and where its states are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phs_milvus.contract.errors import CollectionError, shown
from phs_milvus.contract.types import ModelInfo, StateFormat
from phs_milvus.milvus import schema
from phs_milvus.milvus.connection import MilvusClient, translated_errors
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.milvus.side import Attachment, SideStates

OWN_EMBEDDING, OWN_STATE = "embedding", "phs_state"


@dataclass(frozen=True, eq=False)
class Attached:
    """How to search a collection.

    Attributes:
        model: the model that filled it.
        layout: which field is what.
        side: the collection of its states; None where they are in a field of its own.
        foreign: whether somebody else fills it, so that what its embeddings are is only believed.
    """

    model: ModelRecord
    layout: schema.Layout
    side: SideStates | None
    foreign: bool


def attached(
    client: MilvusClient,
    name: str,
    *,
    embedding_field: str | None,
    state_field: str | None,
    model: ModelInfo | None,
    state_format: StateFormat | None,
) -> Attached:
    """See `FocusedCollection.attach`; without `state_field` the side collection is made if there is none."""
    with translated_errors(f"cannot open collection {shown(name)!r}"):
        description = _described(client, name)
        if state_field is not None:
            return _in_row(client, description, embedding_field, state_field, model, state_format or "float16")
        own = schema.remembered(description)
        if own is not None and _has_own_states(description):
            raise CollectionError(
                f"collection {name!r} was made by phs_milvus and has its states already: open it, there is nothing "
                "to attach"
            )
        side = SideStates.find(client, description)
        if side is None and model is None:
            raise CollectionError(
                f"collection {name!r} has no PHS states, which a search by pointing needs; phs-milvus attach {name} "
                "makes them beside it (in Python: FocusedCollection.attach(..., model=encoder.info), then backfill)"
            )
        if side is not None and model is not None:
            side.model.check(model, side.name)
        record = side.model if side is not None else ModelRecord.of(model, state_format or "int8")  # type: ignore[arg-type]  # is there
        field = embedding_field or (side.attachment.embedding_field if side is not None else None)
        layout = schema.read(client, description, field, None, record)
        if side is None:
            side = SideStates.create(client, description, record, Attachment(layout.embedding))
        return Attached(record, layout, side, foreign=True)


def opened(client: MilvusClient, name: str) -> Attached:
    """See `FocusedCollection.open`."""
    with translated_errors(f"cannot open collection {shown(name)!r}"):
        description = _described(client, name)
        if _has_own_states(description):
            return _in_row(client, description, OWN_EMBEDDING, OWN_STATE, None)
        return attached(client, name, embedding_field=None, state_field=None, model=None, state_format=None)


def detach(client: MilvusClient, name: str) -> str:
    """Drops the side collection of a collection, which undoes everything that attaching it did; returns its name.

    Raises:
        CollectionError: there is no such collection, or no side collection.
    """
    with translated_errors(f"cannot open collection {shown(name)!r}"):
        side = SideStates.find(client, _described(client, name))
    if side is None:
        raise CollectionError(f"collection {name!r} has no collection of states beside it; nothing was dropped")
    side.drop()
    return side.name


def _has_own_states(description: dict[str, Any]) -> bool:
    return any(field["name"] == OWN_STATE for field in description["fields"])


def _described(client: MilvusClient, name: str) -> dict[str, Any]:
    if not client.has_collection(name):
        there = ", ".join(sorted(client.list_collections())) or "none"
        raise CollectionError(
            f"there is no collection {shown(name)!r}; there are: {shown(there)}; phs-milvus ingest makes one"
        )
    description: dict[str, Any] = client.describe_collection(name)
    return description


def _in_row(
    client: MilvusClient,
    description: dict[str, Any],
    embedding_field: str | None,
    state_field: str,
    model: ModelInfo | None,
    state_format: StateFormat = "float16",
) -> Attached:
    name = description["collection_name"]
    own = schema.remembered(description)
    if own and model:
        own.check(model, name)
    record = own or (ModelRecord.of(model, state_format) if model else None)
    layout = schema.read(client, description, embedding_field, state_field, record)
    if record is None:
        raise CollectionError(
            f"collection {name!r} does not say which model filled it; if you know, vouch for it: "
            "FocusedCollection.attach(..., model=encoder.info)"
        )
    return Attached(record, layout, None, foreign=own is None)
