"""Searches and reads with the options of MilvusClient.search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pymilvus import DataType, FieldSchema, MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.milvus import schema
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from phs_milvus.milvus.options import SearchOptions, ef_for
from tests.milvus.support import INFO, URI, E, lite_only, make_rows

QUERY = np.eye(1, E, dtype=np.float32)
server_only = pytest.mark.skipif(URI is None, reason="about a server")


def counted(client: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls of these methods of the client, as they come: (name, keyword arguments)."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append((name, options))
            return real(*arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(client, name, counting(name, getattr(client, name)))
    return calls


def test_partitions(client: MilvusClient, foreign: Callable[..., str]) -> None:
    name = foreign()
    rows = make_rows([1, 2, 3, 4])
    for partition, part in (("red", rows[:2]), ("blue", rows[2:])):
        client.create_partition(name, partition)
        packed = [
            {"pk": row.id, "vector": row.embedding, "packed": state_codec.pack(row.state), "title": ""} for row in part
        ]
        client.insert(name, packed, partition_name=partition)
    collection = FocusedCollection.attach(client, name, embedding_field="vector", state_field="packed", model=INFO)

    def found(*names: str) -> set[object]:
        return set(collection.search(QUERY, 9, partition_names=names, consistency_level="Strong")[0].ids)

    assert (found("red"), found("blue"), found("red", "blue")) == ({1, 2}, {3, 4}, {1, 2, 3, 4})
    assert found("_default") == set() and found() == {1, 2, 3, 4}
    for names in (["green"], ["red", "green"]):
        with pytest.raises(InvalidInput, match=r"no partition 'green'; there are: _default, blue, red") as caught:
            collection.search(QUERY, 9, partition_names=names)
        assert caught.value.field == "partition_names"
    client.create_partition(name, "green")  # after the collection was opened
    assert found("green") == set()


@pytest.fixture
def with_vectors(client: MilvusClient, name: str) -> FocusedCollection:
    """Two rows, each with two vectors of its owner's."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("packed", DataType.VARCHAR, max_length=64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=E)
    schema.add_field("clip", DataType.FLOAT_VECTOR, dim=4)
    schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
    index = client.prepare_index_params()
    for field in ("vector", "clip"):
        index.add_index(field, index_type="FLAT", metric_type="COSINE")
    index.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index)
    own = {"clip": [0.5] * 4, "words": {1: 0.5, 7: 0.25}, "note": "blue"}
    for row in make_rows([1, 2]):
        packed = state_codec.pack(row.state)
        client.insert(name, [{"pk": row.id, "vector": row.embedding, "packed": packed, **own}])
    return FocusedCollection.attach(client, name, embedding_field="vector", state_field="packed", model=INFO)


@lite_only  # 2.3 has one vector a row
@pytest.mark.parametrize("with_states", [False, True])
def test_a_star_leaves_vectors_out_unless_they_are_named(with_vectors: FocusedCollection, with_states: bool) -> None:
    def found(*names: str) -> dict[str, Any]:
        both = with_vectors.search(QUERY, 2, output_fields=names, with_states=with_states)[0].fields
        first = next(fields for fields in both if fields["pk"] == 1)
        assert with_vectors.get([1], names) == [first]
        return first

    assert found("*") == {"pk": 1, "note": "blue"}
    assert found("*", "clip") == {"pk": 1, "note": "blue", "clip": [0.5] * 4}
    assert found("pk", "words") == {"pk": 1, "words": {1: 0.5, 7: 0.25}}


def test_vectors_of_every_type_are_known(client: MilvusClient, foreign: Callable[..., str]) -> None:
    """Of a description as a server gives it: Milvus Lite and 2.3 have only some of them."""
    described = client.describe_collection(foreign())
    types = [kind for kind in DataType if "VECTOR" in kind.name]
    described["fields"] += [{"name": kind.name, "type": kind, "params": {"dim": 8}} for kind in types]
    layout = schema.read(client, described, "vector", "packed", None)
    assert len(types) >= 6 and layout.vectors == tuple(kind.name for kind in types)
    assert layout.others == ("title", *layout.vectors)


def test_all_dynamic_fields_of_an_attached_collection(client: MilvusClient, foreign: Callable[..., str]) -> None:
    """Whatever is named beside "*", and whether or not there is a digest."""
    name = foreign(enable_dynamic_field=True)
    row = make_rows([1])[0]
    whole = {"pk": 1, "title": "t", "note": "blue", "price": 3}
    client.insert(name, [{**whole, "vector": row.embedding, "packed": state_codec.pack(row.state)}])
    collection = FocusedCollection.attach(client, name, embedding_field="vector", state_field="packed", model=INFO)
    for fields in (["*"], ["*", "note"], ["note", "*", "digest"], ["*", "nothing"]):
        for with_states in (False, True):
            found = collection.search(
                QUERY, 1, output_fields=fields, with_states=with_states, consistency_level="Strong"
            )[0]
            assert found.fields == [whole]
        assert collection.get([1], fields) == [whole]
    found = collection.search(QUERY, 1, output_fields=["*", "vector"])[0].fields[0]
    assert np.array_equal(np.float32(found.pop("vector")), row.embedding) and found == whole
    assert collection.search(QUERY, 1, output_fields=["price"])[0].fields == [{"price": 3}]


def grouped(client: MilvusClient, name: str) -> FocusedCollection:
    collection = FocusedCollection.create(client, name, INFO, fields=[FieldSchema("kind", DataType.INT64)])
    rows = make_rows([f"r{number}" for number in range(12)])
    for number, row in enumerate(rows):
        row.metadata = {"kind": number % 3, "note": "n"}
    collection.insert(rows)
    return collection


@lite_only
def test_grouping(client: MilvusClient, name: str) -> None:
    collection = grouped(client, name)
    every = collection.search(QUERY, 12, output_fields=["kind"])[0]
    best = {fields["kind"]: key for key, fields in reversed(list(zip(every.ids, every.fields, strict=True)))}
    found = collection.search(QUERY, 12, group_by_field="kind", with_states=True)[0]
    assert sorted(map(str, found.ids)) == sorted(map(str, best.values())) and len(found.states or []) == 3
    with pytest.raises(InvalidInput, match="group_by_field 'note'") as caught:  # no field of the schema
        collection.search(QUERY, 3, group_by_field="note")
    assert caught.value.field == "group_by_field"


@server_only
def test_grouping_by_a_server_that_cannot(client: MilvusClient, name: str) -> None:
    """2.3 would leave it out in silence."""
    with pytest.raises(InvalidInput, match=r"needs Milvus 2\.4 or later; this server is v2\.3\.5") as caught:
        grouped(client, name).search(QUERY, 12, group_by_field="kind")
    assert caught.value.field == "group_by_field"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"partition_names": "p"}, "partition_names"),
        ({"partition_names": [3]}, "partition_names"),
        ({"consistency_level": "strong"}, "consistency_level"),
        ({"consistency_level": "Customized"}, "consistency_level"),
        ({"search_params": "ef"}, "search_params"),
        ({"search_params": {"params": 3}}, "search_params"),
        ({"search_params": {"offset": 3}}, "search_params"),
        ({"search_params": {"params": {"offset": 3}}}, "search_params"),
        ({"search_params": {"metric_type": "L2"}}, "search_params"),
        ({"search_params": {"radius": "x"}}, "search_params"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_what_cannot_be_is_named(filled: FocusedCollection, options: dict[str, Any], field: str) -> None:
    if URI and "radius" in str(options):
        pytest.skip("Milvus 2.3.5 takes it for no radius")
    with pytest.raises(InvalidInput) as caught:
        filled.search(QUERY, 3, **options)
    assert caught.value.field == field


def test_one_of_several_options_is_to_blame(filled: FocusedCollection) -> None:
    with pytest.raises(InvalidInput, match="does not take the filter") as caught:
        filled.search(QUERY, 3, filter="album >", partition_names=["_default"], search_params={"ef": 99}, timeout=9)
    assert caught.value.field == "filter"


def test_search_params(filled: FocusedCollection) -> None:
    """At both places where MilvusClient takes them."""
    every = filled.search(QUERY, 20)[0]
    middle = float(every.scores[9])
    for params in (
        {"radius": middle},
        {"params": {"radius": middle}},
        {"metric_type": "COSINE", "params": {"radius": middle}},
    ):
        found = filled.search(QUERY, 20, search_params=params)[0]
        assert found.ids in (every.ids[:9], every.ids[:10])  # whether the radius itself is in, versions differ
    ours = SearchOptions(search_params={"ef": 99, "params": {"nprobe": 3}}).params(10, "COSINE")
    assert ours == {"params": {"ef": 99, "nprobe": 3}}
    assert SearchOptions(search_params={"metric_type": "IP"}).params(10, "IP") == {
        "metric_type": "IP",
        "params": {"ef": 64},
    }


def test_ef_grows_with_the_limit_within_what_servers_take() -> None:
    values = [ef_for(limit) for limit in range(1, 16_385)]
    assert all(ef >= limit for limit, ef in enumerate(values, start=1)) and values == sorted(values)
    assert ef_for(1000) == 4000 and values[-1] <= 32_768


@server_only
def test_a_read_sees_what_another_client_wrote(collection: FocusedCollection, uri: str) -> None:
    reader = FocusedCollection.open(connect(uri), collection.name)
    for number in range(5):
        row = make_rows([f"new{number}"], seed=number)[0]
        collection.upsert([row])
        found = reader.search(row.embedding[None], 1, consistency_level="Strong")[0]
        assert found.ids == [row.id]
        # A row that is new is found by id in any case.
        later = make_rows([f"later{number}"], seed=100 + number)[0]
        collection.upsert([later])
        assert [one["id"] for one in reader.get([row.id, later.id], [], consistency_level=None)] == [row.id, later.id]
    close(reader.client)


@server_only
def test_what_waits_for_the_present(filled: FocusedCollection, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait is about 0.2 s: of a search that finds rows there is none, of one that finds nothing one."""
    reader = FocusedCollection.open(connect(uri), filled.name)
    calls = counted(reader.client, monkeypatch, "search", "query")

    def levels() -> list[object]:
        found = [options.get("consistency_level") for _, options in calls]
        calls.clear()
        return found

    reader.search(QUERY, 3)
    assert levels() == [None]
    reader.get(["r0001", "r0002"], [], consistency_level=None)
    assert levels() == [None]
    reader.get(["r0001"], [])
    assert levels() == ["Strong"]
    assert len(reader.search(QUERY, 3, filter="album == 99")[0]) == 0
    assert levels() == [None, "Strong"]
    reader.check_not_empty()
    assert levels() == ["Eventually"]
    assert len(reader.search(QUERY, 3, filter="album == 99", consistency_level="Bounded")[0]) == 0
    assert levels() == ["Bounded"]
    close(reader.client)


def test_many_ids_are_few_calls(filled: FocusedCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(filled.client, monkeypatch, "query")
    ids = [f"r{number:04d}" for number in range(1000)] + [f"none{number}" for number in range(8000)]
    assert len(filled.digests(ids)) == 1000 and len(calls) == 2
    calls.clear()
    assert len(filled.get(ids[:1000], ["embedding", "phs_state"])) == 1000 and len(calls) == 1


@server_only
def test_answers_that_are_too_large_are_halved(collection: FocusedCollection) -> None:
    """A server refuses one of 100 MB, and what a caller's own fields weigh is not known beforehand."""
    ids = [f"r{number}" for number in range(2100)]
    for start in range(0, len(ids), 700):
        collection.insert(make_rows(ids[start : start + 700], note="n" * 60_000))
    assert [row["id"] for row in collection.get(ids, ["note"])] == ids
