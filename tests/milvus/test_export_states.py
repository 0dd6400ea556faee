"""States out of a real Milvus into a file: every row once, whatever its format and key, and all of a file or none."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pymilvus import MilvusClient

from phs_milvus.contract import state
from phs_milvus.contract.errors import InvalidInput, StateError
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.states_file import StatesHeader
from phs_milvus.milvus import export_states as module
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.export_states import export_states
from phs_milvus.milvus.side import Attachment, NewState
from tests.milvus.support import INFO, make_rows


def read(path: Path) -> tuple[StatesHeader, list[object], Int8States]:
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all().combine_chunks()
    columns = [table.column(name).combine_chunks().to_numpy_ndarray() for name in ("values", "scales")]
    return StatesHeader.of(table.schema), table.column("key").to_pylist(), Int8States(*columns)


def test_rows_of_both_formats(client: MilvusClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several batches, the last one of a single row."""
    monkeypatch.setattr(module, "_ROWS", 20)
    collection = FocusedCollection.create(client, name, INFO, state_format="float16")
    rows = make_rows([f"r{number:03d} ä" for number in range(61)])
    for row in rows[::2]:
        row.state = state.pack(row.state, "int8")
    collection.insert(rows)
    begun = datetime.now(timezone.utc)
    done = export_states(collection, tmp_path / "x.states")
    assert (done.rows, done.without_state) == (61, 0) and str(done).startswith(f"61 states in {tmp_path}")
    header, keys, states = read(tmp_path / "x.states")
    assert keys == [row.id for row in rows]
    assert header == StatesHeader(name, done.exported_at, INFO.fingerprint, INFO.model_id, INFO.hidden_size)
    assert begun <= header.exported_at <= datetime.now(timezone.utc)
    # What is int8 already is not rounded again.
    texts = [row.state if isinstance(row.state, str) else state.pack(row.state, "int8") for row in rows]
    expected = state.unpack_stored(texts, INFO.hidden_size)
    np.testing.assert_array_equal(states.values, expected.values)
    np.testing.assert_array_equal(states.scales, expected.scales)


def test_an_attached_collection_with_numbers_for_keys(
    client: MilvusClient, foreign: Callable[..., str], tmp_path: Path
) -> None:
    name = foreign()
    rows = make_rows(["a", "b", "c"])
    client.insert(
        name,
        [{"pk": 7 - n, "vector": row.embedding, "packed": "", "title": ""} for n, row in enumerate(rows)],
    )
    collection = FocusedCollection.attach(client, name, model=INFO)
    collection.side.remember(Attachment("vector"))
    collection.side.write([NewState(7 - n, row.state, row.embedding, "") for n, row in enumerate(rows[:2])])
    try:
        done = export_states(collection, tmp_path / "x.states")
        assert (done.rows, done.without_state) == (2, 1) and "1 rows without a state" in str(done)
        header, keys, states = read(tmp_path / "x.states")
        assert keys == [6, 7] and header.collection == name
        np.testing.assert_array_equal(states.values[1], Int8States.of(np.float16(rows[0].state)[None]).values[0])
    finally:
        collection.side.drop()


def test_an_alias_is_written_as_what_it_means(
    client: MilvusClient, collection: FocusedCollection, tmp_path: Path
) -> None:
    collection.insert(make_rows(["a"]))
    client.create_alias(collection.name, f"{collection.name}_now")
    try:
        export_states(FocusedCollection.open(client, f"{collection.name}_now"), tmp_path / "x.states")
    finally:
        client.drop_alias(f"{collection.name}_now")
    assert read(tmp_path / "x.states")[0].collection == collection.name


def test_a_file_is_replaced_only_by_a_whole_one(
    client: MilvusClient, collection: FocusedCollection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.states"
    collection.insert(make_rows([f"r{number}" for number in range(9)]))
    export_states(collection, path)
    before = path.read_bytes()
    monkeypatch.setattr(module, "_ROWS", 4)
    client.insert(
        collection.name,
        [{"id": "r8a", "embedding": make_rows(["x"])[0].embedding, "phs_state": "no state", "digest": ""}],
    )
    with pytest.raises(StateError, match=f"collection '{collection.name}', row 'r8a'"):
        export_states(collection, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written(collection: FocusedCollection, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        export_states(collection, tmp_path / "none" / "x.states")
    assert caught.value.field == "file"
    assert not list(tmp_path.iterdir())


def test_an_empty_collection_is_a_file_without_rows(collection: FocusedCollection, tmp_path: Path) -> None:
    assert export_states(collection, tmp_path / "x.states").rows == 0
    with pa.ipc.open_file(str(tmp_path / "x.states")) as reader:
        assert reader.num_record_batches == 0 and StatesHeader.of(reader.schema).collection == collection.name
