"""The format of a collection's states: recorded with the model, and float16 where nothing is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pymilvus import MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, StateError
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import ModelRecord
from tests.milvus.support import INFO, D, make_rows


@pytest.mark.parametrize("state_format", state_codec.STATE_FORMATS)
def test_rows_are_written_in_the_collections_format(client: MilvusClient, name: str, state_format: str) -> None:
    FocusedCollection.create(client, name, INFO, state_format=state_format)
    collection = FocusedCollection.open(client, name)
    assert collection.model.state_format == collection.describe()["model"]["state_format"] == state_format
    length = state_codec.text_length(D, state_format)
    fields = {field["name"]: field for field in client.describe_collection(name)["fields"]}
    assert int(fields["phs_state"]["params"]["max_length"]) == length
    rows = make_rows(["a", "b", "c"])
    collection.upsert(rows)
    (found,) = collection.search(rows[0].embedding[None], 3, with_states=True)
    by_id = {row.id: row for row in rows}
    assert found.states == [state_codec.pack(by_id[key].state, state_format) for key in found.ids]
    assert {len(text) for text in found.states} == {length}


def test_a_packed_state_is_stored_as_it_is(client: MilvusClient, name: str) -> None:
    """In either format where there is room for it: a row that is moved keeps its state to the last bit."""
    collection = FocusedCollection.create(client, name, INFO, state_format="float16")
    rows = make_rows(["small", "large"])
    texts = [state_codec.pack(rows[0].state, "int8"), state_codec.pack(rows[1].state)]
    for row, text in zip(rows, texts, strict=True):
        row.state = text
    collection.insert(rows)
    assert [row["phs_state"] for row in collection.get(["small", "large"], ["phs_state"])] == texts
    assert state_codec.unpack(texts, D).dtype == np.float16
    collection.model = replace(collection.model, state_format="int8")
    for wrong in (texts[1], texts[0] + "AAAA", ""):
        rows[0].state = wrong
        with pytest.raises(StateError, match=r"row 'small': a packed state of 'tiny' has 32 characters here \(int8\)"):
            collection.upsert(rows[:1])


def test_a_collection_of_others_may_have_room_for_int8_only(client: MilvusClient, foreign: Callable[..., str]) -> None:
    fields = {"embedding_field": "vector", "state_field": "packed", "model": INFO}
    name = foreign(length=state_codec.text_length(D, "int8"))
    with pytest.raises(CollectionError, match="max_length 32, but the model needs 56"):
        FocusedCollection.attach(client, name, **fields)
    collection = FocusedCollection.attach(client, name, **fields, state_format="int8")
    (row,) = make_rows([7], title="t")
    collection.insert([row])
    (found,) = collection.search(row.embedding[None], 1, with_states=True)
    assert found.states == [state_codec.pack(row.state, "int8")]


def test_records_older_than_the_choice_mean_float16() -> None:
    values = json.loads(ModelRecord.of(INFO, "int8").to_json())
    assert ModelRecord.from_json(json.dumps(values)) == ModelRecord.of(INFO, "int8")
    del values["phs"]["state_format"]
    assert ModelRecord.from_json(json.dumps(values)) == ModelRecord.of(INFO, "float16")


def test_a_format_of_a_later_version_is_refused() -> None:
    values = json.loads(ModelRecord.of(INFO).to_json())
    values["phs"]["state_format"] = "int4"
    with pytest.raises(CollectionError, match="format 'int4', and this version of phs-milvus reads float16, int8"):
        ModelRecord.from_json(json.dumps(values))


def test_what_cannot_be_made(client: MilvusClient, name: str) -> None:
    with pytest.raises(InvalidInput, match="float16 or int8, got 'int4'") as caught:
        FocusedCollection.create(client, name, INFO, state_format="int4")
    assert caught.value.field == "state_format"
    with pytest.raises(CollectionError, match="hidden size 24000"):
        FocusedCollection.create(client, name, replace(INFO, hidden_size=24_000), state_format="int8")
    assert not client.has_collection(name)
    FocusedCollection.create(client, name, replace(INFO, hidden_size=13_000), state_format="int8")
