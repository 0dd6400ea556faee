"""Finds out how a collection can be searched: which fields hold what, and where its states are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phs_milvus.contract.errors import CollectionError, ModelMismatch, shown
from phs_milvus.contract.types import ModelInfo, StateFormat
from phs_milvus.milvus import schema
from phs_milvus.milvus.connection import MilvusClient, translated_errors
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.milvus.side import Attachment, SideStates, drop_side, name_of
from phs_milvus.milvus.table import Table

_SAMPLE = 256  # rows whose embeddings are looked at before a search by IP or L2
OWN_EMBEDDING, OWN_STATE = "embedding", "phs_state"


@dataclass(frozen=True, eq=False)
class Attached:
    """How to search a collection.

    Attributes:
        name: of the collection itself, where an alias of it was opened.
        model: the model that filled it.
        layout: which field is what.
        side: the collection of its states; None where they are in a field of its own.
        foreign: whether somebody else fills it, so that what its embeddings are is only believed.
    """

    name: str
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
        if schema.remembered(description) is not None and _has_own_states(description):
            raise CollectionError(
                f"collection {name!r} was made by phs_milvus and has its states already: open it, there is nothing "
                "to attach"
            )
        side = SideStates.find(client, description)
        if side is not None and model is not None and side.model.fingerprint != model.fingerprint and not side.count():
            side.drop()  # an attempt with another model, which came to nothing
            side = None
        if side is None:
            return _made(client, description, embedding_field, model, state_format or "int8")
        _check_fits(side, embedding_field, model, state_format)
        layout = schema.read(client, description, side.attachment.embedding_field, None, side.model)
        return _checked(client, description, side.model, layout, side, foreign=True)


def _made(
    client: MilvusClient,
    description: dict[str, Any],
    embedding_field: str | None,
    model: ModelInfo | None,
    state_format: StateFormat,
) -> Attached:
    """With a new side collection."""
    name = description["collection_name"]
    if model is None:
        raise CollectionError(
            f"collection {name!r} has no PHS states, which a search by pointing needs; phs-milvus attach {name} "
            "makes them beside it (in Python: FocusedCollection.attach(..., model=encoder.info), then backfill)"
        )
    record = ModelRecord.of(model, state_format)
    layout = schema.read(client, description, embedding_field, None, record)
    found = _checked(client, description, record, layout, None, foreign=True)  # before anything is made
    return replace(found, side=SideStates.create(client, description, record, Attachment(layout.embedding)))


def _check_fits(
    side: SideStates, embedding_field: str | None, model: ModelInfo | None, state_format: StateFormat | None
) -> None:
    """Raises ModelMismatch or CollectionError where a side collection holds something else than is asked for."""
    undo = f"to begin anew, drop {side.name} (phs-milvus attach --undo)"
    if model is not None:
        try:
            side.model.check(model, side.name)
        except ModelMismatch as error:
            raise ModelMismatch(f"{error}; {undo}") from None
    for what, asked, found in (
        ("embeddings in field", embedding_field, side.attachment.embedding_field),
        ("states in format", state_format, side.model.state_format),
    ):
        if asked not in (None, found):
            raise CollectionError(f"{side.name!r} was made for {what} {found!r}, not {asked!r}; {undo}")


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
    with translated_errors(f"cannot drop the states of {shown(name)!r}"):
        # Its owner may have dropped the collection meanwhile.
        real = client.describe_collection(name)["collection_name"] if client.has_collection(name) else name
        dropped = drop_side(client, real)
    if not dropped:
        raise CollectionError(f"collection {name!r} has no collection of states beside it; nothing was dropped")
    return name_of(real)


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
    return _checked(client, description, record, layout, None, foreign=own is None)


def _checked(
    client: MilvusClient,
    description: dict[str, Any],
    record: ModelRecord,
    layout: schema.Layout,
    side: SideStates | None,
    *,
    foreign: bool,
) -> Attached:
    """Raises CollectionError for embeddings whose scores would be no cosine similarities."""
    name = description["collection_name"]
    if layout.metric != "COSINE" and (rows := Table(client, name, layout.id).sample([layout.embedding], _SAMPLE)):
        embeddings = np.array([row[layout.embedding] for row in rows], np.float32)
        schema.check_norms(name, layout.embedding, layout.metric, embeddings)
    return Attached(name, record, layout, side, foreign)
