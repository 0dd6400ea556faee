"""Collections made with a schema, index and properties of the caller's."""

from __future__ import annotations

from typing import Any

import pytest
from pymilvus import DataType, FieldSchema, MilvusClient

from phs_milvus.contract.errors import CollectionError, InvalidInput
from phs_milvus.milvus.collection import FocusedCollection
from tests.milvus.support import INFO, URI, lite_only, make_rows

TENANT = FieldSchema("tenant", DataType.VARCHAR, max_length=64)
PRICE = FieldSchema("price", DataType.INT64)


def test_fields_partition_key_and_shards(client: MilvusClient, name: str) -> None:
    collection = FocusedCollection.create(
        client,
        name,
        INFO,
        index_type="HNSW",
        index_params={"M": 32},
        fields=[TENANT, PRICE],
        partition_key_field="tenant",
        num_partitions=8,
        num_shards=2,
        consistency_level="Bounded",
        properties={"collection.ttl.seconds": 86_400},
    )
    assert collection.layout.others == ("tenant", "price") and collection.layout.partition_key
    found = client.describe_collection(name)
    assert dict(found["properties"])["collection.ttl.seconds"] == "86400"
    if URI:  # Lite keeps one shard, its own partitions, and no parameters to tell
        assert (found["num_shards"], len(client.list_partitions(name))) == (2, 8)
        index = client.describe_index(name, "embedding")
        assert (index["index_type"], index["M"], index["efConstruction"]) == ("HNSW", "32", "200")
        assert found["consistency_level_name"] == "Bounded"
    rows = make_rows([f"r{number}" for number in range(10)])
    for number, row in enumerate(rows):
        row.metadata = {"tenant": f"t{number % 2}", "price": number, "note": "dynamic"}
    collection.insert(rows)
    if URI:  # 2.3 would put them where no filter on the key finds them
        with pytest.raises(CollectionError, match=r"has a partition key.* upserting needs Milvus 2\.4"):
            collection.upsert(rows)
    else:
        collection.upsert(rows)
    assert collection.count() == 10
    query = rows[0].embedding[None]
    hits = collection.search(query, 10, filter='tenant == "t1" and price > 2', output_fields=["*"])[0]
    assert sorted(hits.ids) == ["r3", "r5", "r7", "r9"]
    assert {tuple(sorted(fields)) for fields in hits.fields} == {("digest", "id", "note", "price", "tenant")}
    again = FocusedCollection.create(client, name, INFO, overwrite=True, fields=[PRICE])
    assert again.layout.others == ("price",)


def test_without_dynamic_fields(client: MilvusClient, name: str) -> None:
    collection = FocusedCollection.create(client, name, INFO, fields=[PRICE], enable_dynamic_field=False)
    with pytest.raises(InvalidInput, match="no field 'note'; metadata may have price"):
        collection.insert(make_rows(["a"], note="n"))
    collection.insert(make_rows(["a"], price=3))
    assert collection.get(["a"], ["*"])[0]["price"] == 3


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"fields": [FieldSchema("digest", DataType.INT64)]}, "fields"),
        ({"fields": [PRICE, PRICE]}, "fields"),
        ({"fields": ["price"]}, "fields"),
        ({"partition_key_field": "price"}, "partition_key_field"),
        ({"consistency_level": "strict"}, "consistency_level"),
        ({"properties": {"phs": "mine"}}, "properties"),
        ({"index_type": "hnsw"}, "index_type"),
    ],
)
def test_what_cannot_be_is_named(client: MilvusClient, name: str, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        FocusedCollection.create(client, name, INFO, **options)
    assert caught.value.field == field and not client.has_collection(name)


NEWER: list[tuple[dict[str, Any], str]] = [
    ({"properties": {"mmap.enabled": True}}, "properties"),
    ({"fields": [FieldSchema("note", DataType.VARCHAR, max_length=9, mmap_enabled=True)]}, "fields"),
    ({"fields": [FieldSchema("note", DataType.VARCHAR, max_length=9, nullable=True)]}, "fields"),
    ({"fields": [FieldSchema("price", DataType.INT64, default_value=3)]}, "fields"),
]


@pytest.mark.skipif(URI is None, reason="about Milvus 2.3")
@pytest.mark.parametrize(("options", "field"), NEWER)
def test_what_an_older_server_would_leave_out_in_silence(
    client: MilvusClient, name: str, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidInput, match=r"needs Milvus 2\.[45] or later; this server is v2\.3\.5") as caught:
        FocusedCollection.create(client, name, INFO, **options)
    assert caught.value.field == field


@lite_only
@pytest.mark.parametrize(("options", "field"), NEWER)
def test_what_newer_ones_take(client: MilvusClient, name: str, options: dict[str, Any], field: str) -> None:
    collection = FocusedCollection.create(client, name, INFO, **options)
    collection.insert(make_rows(["a"], **({"note": "n"} if "nullable" not in str(options) else {})))
    assert collection.count() == 1


@pytest.mark.skipif(URI is None, reason="Lite takes anything")
def test_what_milvus_refuses_leaves_nothing_behind(client: MilvusClient, name: str) -> None:
    for options, text in (
        ({"index_type": "HNSW", "index_params": {"M": 5000}}, "M out of range"),
        ({"num_shards": 1000}, "shards"),
    ):
        with pytest.raises(CollectionError, match=f"cannot create collection '{name}': .*{text}"):
            FocusedCollection.create(client, name, INFO, **options)
        assert not client.has_collection(name)
