"""float16 states -> int8, in a collection's own rows and in the side collection of an attached one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.side import NewState
from phs_milvus.scale import compact as compact_module
from phs_milvus.scale.compact import compact
from phs_milvus.scale.export import export
from tests.milvus.support import INFO, D, E, make_rows
from tests.scale.support import table_at


def test_own_rows(client: MilvusClient, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the first page, searched in between, and run again."""
    monkeypatch.setattr(compact_module, "_ROWS_PER_PAGE", 20)
    collection = FocusedCollection.create(client, name, INFO, state_format="float16")
    rows = make_rows([f"r{index:03d}" for index in range(50)], album=3)
    collection.insert(rows)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(collection, progress=stop)
    collection = FocusedCollection.open(client, name)
    assert collection.model.state_format == "int8"
    (found,) = collection.search(rows[0].embedding[None], 50, with_states=True, consistency_level="Strong")
    assert sorted(str(state_codec.format_of(text, D)) for text in found.states) == ["float16"] * 30 + ["int8"] * 20
    report = compact(collection)
    assert report.good and (report.rows, report.converted, report.already) == ((50, 50), 30, 20)
    assert report.sampled == 30 and 0.999 < report.least_cosine < 1
    stored = collection.get([row.id for row in rows], ["*", "embedding", "phs_state"])
    for row, one in zip(rows, stored, strict=True):
        assert one["phs_state"] == state_codec.pack(row.state, "int8")
        assert np.array_equal(np.asarray(one["embedding"], np.float32), row.embedding)
        assert (one["digest"], one["album"]) == (row.digest, 3)
    again = compact(FocusedCollection.open(client, name))
    assert again.good and (again.converted, again.already, again.sampled) == (0, 50, 0)


def foreign(client: MilvusClient, name: str) -> FocusedCollection:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=E)
    schema.add_field("title", DataType.VARCHAR, max_length=100)
    schema.add_field("packed", DataType.VARCHAR, max_length=64)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection(name, schema=schema, index_params=index)
    rows = make_rows(list(range(1, 11)))
    records = [{"pk": row.id, "vector": row.embedding, "title": f"t{row.id}", "packed": ""} for row in rows]
    client.insert(name, records)
    collection = FocusedCollection.attach(client, name, model=INFO, state_format="float16")
    assert collection.side is not None
    # The last row has no state yet.
    collection.side.write([NewState(row.id, row.state, row.embedding, row.digest) for row in rows[:9]])
    return collection


def test_a_side_collection_and_its_export(tmp_path: Path, client: MilvusClient, name: str) -> None:
    collection = foreign(client, name)
    rows = make_rows(list(range(1, 11)))
    before = collection.side.hashes(list(range(1, 11)))
    report = compact(collection)
    assert report.good and (report.rows, report.converted, report.sampled) == ((9, 9), 9, 9)
    opened = FocusedCollection.open(client, name)
    assert opened.model.state_format == opened.side.model.state_format == "int8"
    assert opened.side.hashes(list(range(1, 11))) == before
    assert export(opened, str(tmp_path)).without_state == 1
    table = table_at(tmp_path / "parts")
    assert list(table) == list(range(1, 11)) and table[10]["state"] is table[10]["state_format"] is None
    for row in rows[:9]:
        assert table[row.id]["state"] == state_codec.pack(row.state, "int8")
        assert table[row.id]["digest"] == row.digest
        assert json.loads(table[row.id]["metadata"]) == {"title": f"t{row.id}", "packed": ""}


def test_states_in_a_field_of_somebody_else_are_theirs(client: MilvusClient, name: str) -> None:
    foreign(client, name)
    collection = FocusedCollection.attach(
        client, name, embedding_field="vector", state_field="packed", model=INFO, state_format="float16"
    )
    with pytest.raises(CollectionError, match="filled by its owner"):
        compact(collection)
