"""Collections that somebody else made, with their states in a side collection."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, ModelMismatch
from phs_milvus.milvus.attach import detach
from phs_milvus.milvus.collection import FocusedCollection, Row
from phs_milvus.milvus.side import Attachment, NewState, StoredState, hash_of, name_of
from tests.milvus.support import INFO, OTHER, URI, make_rows


@pytest.fixture
def plain(client: MilvusClient, name: str) -> Iterator[Callable[..., str]]:
    """Makes a collection without any place for a state, as owners have them."""

    def make(key: DataType = DataType.INT64, metric: str = "COSINE", dim: int = 16, **options: object) -> str:
        schema = client.create_schema(**{"auto_id": False, "enable_dynamic_field": False, **options})
        limit = {"max_length": 40} if key == DataType.VARCHAR else {}
        schema.add_field("pk", key, is_primary=True, **limit)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field("title", DataType.VARCHAR, max_length=100)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type=metric)
        client.create_collection(name, schema=schema, index_params=index)
        return name

    yield make
    client.drop_collection(name_of(name))


def records(rows: list[Row], *, keys: bool = True) -> list[dict]:
    return [{**({"pk": row.id} if keys else {}), "vector": row.embedding, "title": "t"} for row in rows]


def packed(row: Row) -> str:
    return state_codec.pack(row.state, "int8")


def new_states(rows: list[Row]) -> list[NewState]:
    return [NewState(row.id, row.state, row.embedding, row.digest) for row in rows]


@pytest.mark.parametrize("key", [DataType.INT64, DataType.VARCHAR])
def test_states_lie_beside_the_rows(client: MilvusClient, plain: Callable[..., str], key: DataType) -> None:
    name = plain(key)
    rows = make_rows([5, 7, -9] if key == DataType.INT64 else ['a"', "b", "c/d"])
    client.insert(name, records(rows))
    before = client.describe_collection(name)
    collection = FocusedCollection.attach(client, name, model=INFO)
    assert collection.side is not None and collection.foreign and collection.layout.embedding == "vector"
    collection.side.write(new_states(rows[:2]))
    found = FocusedCollection.open(client, name).search(rows[0].embedding[None], 3, with_states=True)[0]
    states = dict(zip(found.ids, found.states, strict=True))
    assert states == {row.id: packed(row) for row in rows[:2]} | {rows[2].id: ""}
    assert collection.digests([row.id for row in rows]) == {row.id: row.digest for row in rows[:2]}
    assert client.describe_collection(name) == before and collection.count() == 3
    assert list(collection.side.iterate_ids()) == sorted(row.id for row in rows[:2])
    assert collection.describe()["states"]["rows"] == 2
    for write in (lambda: collection.upsert(rows), lambda: collection.insert(rows), lambda: collection.delete([5])):
        with pytest.raises(CollectionError, match="belongs to another application"):
            write()
    assert collection.count() == 3


def test_keys_that_milvus_makes_up_partitions_and_aliases(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain(auto_id=True)
    client.create_partition(name, "p0")
    rows = make_rows([0, 1])
    ids = client.insert(name, records(rows[:1], keys=False))["ids"]
    ids = [*ids, *client.insert(name, records(rows[1:], keys=False), partition_name="p0")["ids"]]
    for row, row_id in zip(rows, ids, strict=True):
        row.id = row_id
    client.create_alias(name, alias := f"{name}_alias")
    try:
        collection = FocusedCollection.attach(client, alias, model=INFO)
        assert collection.side is not None and collection.side.name == name_of(name)
        collection.side.write(new_states(rows))
        found = collection.search(rows[1].embedding[None], 2, with_states=True)[0]
        assert found.ids[0] == rows[1].id and found.states[0] == packed(rows[1])
        assert collection.name == name  # the alias may come to mean another collection
    finally:
        client.drop_alias(alias)


def test_written_states_replace_and_are_seen(client: MilvusClient, plain: Callable[..., str]) -> None:
    collection = FocusedCollection.attach(client, plain(), model=INFO)
    side = collection.side
    rows, others = make_rows([1, 2]), make_rows([1, 2], seed=4)
    assert side.read([1, 2]) == [StoredState(), StoredState()]
    side.write(new_states(rows))
    assert side.read([2, 3, 1]) == [
        StoredState(packed(rows[1]), rows[1].digest),
        StoredState(),
        StoredState(packed(rows[0]), rows[0].digest),
    ]
    side.write(new_states(others[:1]))
    assert side.read([1])[0].state == packed(others[0])
    assert side.hashes([1, 2, 3]) == {1: hash_of(others[0].embedding), 2: hash_of(rows[1].embedding)}
    side.delete([1])
    assert side.read([1, 2])[0] == StoredState() and side.count() == 1


def test_a_sample_leaves_out_rows_whose_embedding_changed(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    rows = make_rows([1, 2, 3])
    client.insert(name, records(rows))
    collection = FocusedCollection.attach(client, name, model=INFO)
    collection.side.write(new_states(rows))
    changed = make_rows([2], seed=9)
    client.upsert(name, records(changed))
    embeddings, texts, changes = collection.sample_states(10)
    assert changes == 1
    assert sorted(texts) == sorted(packed(row) for row in (rows[0], rows[2]))
    for embedding, text in zip(embeddings, texts, strict=True):
        (row,) = [row for row in rows if packed(row) == text]
        np.testing.assert_array_equal(embedding, row.embedding)


def test_what_it_remembers(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    with pytest.raises(CollectionError, match=f"has no PHS states.*phs-milvus attach {name}"):
        FocusedCollection.attach(client, name)
    with pytest.raises(CollectionError, match=f"has no PHS states.*phs-milvus attach {name}"):
        FocusedCollection.open(client, name)
    side = FocusedCollection.attach(client, name, model=INFO).side
    side.remember(Attachment("vector", "title", "https://img.example.com/{title}"))
    again = FocusedCollection.open(client, name)
    assert again.side.attachment == Attachment("vector", "title", "https://img.example.com/{title}")
    assert again.model.fingerprint == INFO.fingerprint
    side.write(new_states(make_rows([1])))
    with pytest.raises(ModelMismatch, match=f"{name}.*phs-milvus attach --undo"):
        FocusedCollection.attach(client, name, model=OTHER)
    for options, message in (
        ({"state_format": "float16"}, "states in format 'int8', not 'float16'"),
        ({"embedding_field": "other"}, "embeddings in field 'vector', not 'other'"),
    ):
        with pytest.raises(CollectionError, match=message):
            FocusedCollection.attach(client, name, model=INFO, **options)


def test_an_attempt_that_came_to_nothing_is_forgotten(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain(metric="L2")
    FocusedCollection.attach(client, name, model=OTHER)
    assert FocusedCollection.attach(client, name, model=INFO).side.model.fingerprint == INFO.fingerprint
    detach(client, name)
    client.insert(name, [{"pk": 1, "vector": 3 * make_rows([1])[0].embedding, "title": "t"}])
    with pytest.raises(CollectionError, match="needs embeddings of norm 1"):
        FocusedCollection.attach(client, name, model=INFO)
    assert not client.has_collection(name_of(name))


def test_what_was_interrupted_while_it_was_made(client: MilvusClient, plain: Callable[..., str]) -> None:
    """Milvus makes a collection and its index in two calls."""
    name = plain()
    FocusedCollection.attach(client, name, model=INFO)
    client.release_collection(name_of(name))
    client.drop_index(name_of(name), "unused")
    row = make_rows([1])[0]
    side = FocusedCollection.attach(client, name, model=INFO).side
    side.write(new_states([row]))
    assert side.read([1])[0].state == packed(row)


@pytest.mark.skipif(URI is None, reason="Milvus Lite loads all or nothing")
def test_what_was_loaded_in_part_stays_so(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    client.create_partition(name, "p0")
    client.release_collection(name)
    client.load_partitions(name, ["p0"])
    client.insert(name, records(make_rows([1])))
    client.insert(name, records(make_rows([2])), partition_name="p0")
    collection = FocusedCollection.attach(client, name, model=INFO)
    assert list(collection.iterate_ids()) == [2]


def test_states_in_the_format_that_was_asked_for(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    (row,) = make_rows([1])
    side = FocusedCollection.attach(client, name, model=INFO, state_format="float16").side
    side.write(new_states([row]))
    assert side.read([1])[0].state == state_codec.pack(row.state)
    assert FocusedCollection.attach(client, name, model=INFO).model.state_format == "float16"  # as it was made


def test_detached_it_is_as_it_was(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    rows = make_rows([1, 2])
    client.insert(name, records(rows))
    FocusedCollection.attach(client, name, model=INFO).side.write(new_states(rows))
    assert detach(client, name) == name_of(name)
    assert not client.has_collection(name_of(name))
    with pytest.raises(CollectionError, match="nothing was dropped"):
        detach(client, name)
    FocusedCollection.attach(client, name, model=INFO)
    assert len(client.query(name, filter="pk > 0", output_fields=["vector", "title"], consistency_level="Strong")) == 2
    client.drop_collection(name)  # by its owner, who did not know
    assert detach(client, name) == name_of(name)
    assert not client.has_collection(name_of(name))


def test_what_cannot_be_attached(
    client: MilvusClient, plain: Callable[..., str], collection: FocusedCollection
) -> None:
    with pytest.raises(CollectionError, match="has its states already"):
        FocusedCollection.attach(client, collection.name, model=INFO)
    client.drop_collection(collection.name)
    name = plain(dim=8)
    with pytest.raises(CollectionError, match="no FLOAT_VECTOR field of dimension 16.*it has pk INT64, vector FLOAT"):
        FocusedCollection.attach(client, name, model=INFO)
    assert not client.has_collection(name_of(name))


def test_a_collection_of_that_name_is_something_else(client: MilvusClient, plain: Callable[..., str]) -> None:
    name = plain()
    client.create_collection(name_of(name), dimension=4)
    with pytest.raises(CollectionError, match=f"{name_of(name)}.*is something else"):
        FocusedCollection.attach(client, name, model=INFO)
    with pytest.raises(CollectionError, match="is something else"):
        detach(client, name)
    assert client.has_collection(name_of(name))


def test_partitions_made_later_are_noticed(client: MilvusClient, collection: FocusedCollection) -> None:
    row = make_rows(["a"])[0]
    collection.upsert([row])
    client.create_partition(collection.name, "p0")
    with pytest.raises(CollectionError, match="has partitions .*p0.* write to it with pymilvus"):
        collection.upsert([row])
