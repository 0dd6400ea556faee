"""Collections that somebody else made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput
from phs_milvus.milvus.collection import FocusedCollection, Row
from tests.milvus.support import INFO, make_rows

FIELDS = {"embedding_field": "vector", "state_field": "packed"}


@pytest.mark.parametrize("metric", ["COSINE", "IP", "L2"])
def test_attach_by_integer_ids(client: MilvusClient, foreign: Callable[..., str], metric: str) -> None:
    name = foreign(metric)
    with pytest.raises(CollectionError, match="does not say which model"):
        FocusedCollection.attach(client, name, **FIELDS)
    collection = FocusedCollection.attach(client, name, **FIELDS, model=INFO)
    ids = [3, -5, 2**62]
    rows = make_rows(ids, title="t")
    collection.insert(rows)
    assert list(collection.iterate_ids()) == sorted(ids)
    query = rows[1].embedding + 0.1 * rows[0].embedding
    found = collection.search(query[None], 3, with_states=True, output_fields=["title"])[0]
    cosines = {row.id: float(row.embedding @ query / np.linalg.norm(query)) for row in rows}
    assert found.ids == sorted(ids, key=lambda key: -cosines[key])
    np.testing.assert_allclose(found.scores, [cosines[key] for key in found.ids], atol=1e-5)
    assert found.states == [state_codec.pack(rows[ids.index(key)].state) for key in found.ids]
    assert collection.get([2**62, 9, 3]) == [{"pk": 2**62, "title": "t"}, {"pk": 3, "title": "t"}]
    with pytest.raises(CollectionError, match="no VARCHAR field 'digest'"):
        collection.digests([3])
    with pytest.raises(InvalidInput, match="64-bit integers"):
        collection.insert(make_rows(["text"], title="t"))
    with pytest.raises(InvalidInput, match="no field 'color'; metadata may have title"):
        collection.insert(make_rows([4], color="red"))
    with pytest.raises(InvalidInput, match="no field 'color'; it has pk, title") as caught:
        collection.search(query[None], 3, output_fields=["color"])
    assert caught.value.field == "output_fields"
    collection.delete([3])
    assert collection.count() == 2


def test_attach_by_text_ids(client: MilvusClient, foreign: Callable[..., str]) -> None:
    name = foreign(key=DataType.VARCHAR, enable_dynamic_field=True)
    collection = FocusedCollection.attach(client, name, **FIELDS, model=INFO)
    rows = make_rows(['a"', "b"], title="t", more=1)
    collection.upsert(rows)
    assert collection.digests(['a"', "c"]) == {'a"': rows[0].digest}
    with pytest.raises(InvalidInput, match="allows 20"):
        collection.insert(make_rows(["x" * 21], title="t"))


def test_attach_what_does_not_fit(client: MilvusClient, foreign: Callable[..., str]) -> None:
    name = foreign(length=53)
    has = "it has pk INT64, vector FLOAT_VECTOR, packed VARCHAR, title VARCHAR"
    for fields, message in (
        (
            {"embedding_field": "nope", "state_field": "packed"},
            f"no field 'nope' of type FLOAT_VECTOR.*{has}",
        ),
        ({"embedding_field": "title", "state_field": "packed"}, "no field 'title' of type FLOAT_VECTOR"),
        (
            {"embedding_field": "vector", "state_field": "phs_state"},
            f"no field 'phs_state' of type VARCHAR.*{has}",
        ),
        ({"embedding_field": "vector", "state_field": "pk"}, "no field 'pk' of type VARCHAR"),
        (FIELDS, "'packed' has max_length 53, but the model needs 56"),
    ):
        with pytest.raises(CollectionError, match=message):
            FocusedCollection.attach(client, name, **fields, model=INFO)
    with pytest.raises(CollectionError, match="'vector' has dim 16, but the model needs 17"):
        FocusedCollection.attach(client, name, **FIELDS, model=replace(INFO, embedding_size=17))
    with pytest.raises(CollectionError, match="has no PHS states.*phs-milvus attach"):
        FocusedCollection.open(client, name)


def test_attach_where_milvus_makes_the_ids(client: MilvusClient, foreign: Callable[..., str]) -> None:
    collection = FocusedCollection.attach(client, foreign(auto_id=True), **FIELDS, model=INFO)
    row = make_rows(["x"])[0]
    with pytest.raises(CollectionError, match="makes up its own ids"):
        collection.insert([row])
    record = {"vector": row.embedding, "packed": state_codec.pack(row.state), "title": "t"}
    client.insert(collection.name, [record])
    assert collection.search(row.embedding[None], 1, output_fields=["title"])[0].fields == [{"title": "t"}]


def add_raw(client: MilvusClient, name: str, norms: list[float]) -> list[Row]:
    """Rows whose embeddings have these norms, as an owner writes them."""
    rows = make_rows(list(range(len(norms))))
    for row, norm in zip(rows, norms, strict=True):
        record = {"pk": row.id, "vector": norm * row.embedding, "packed": state_codec.pack(row.state), "title": "t"}
        client.insert(name, [record])
    return rows


@pytest.mark.parametrize("metric", ["IP", "L2"])
@pytest.mark.parametrize(
    ("norms", "found"),
    [
        ([3.0, 6.0, 12.0], "3 of 3 rows looked at are not, norms 3 to 12"),
        ([1.0, 1.0, 0.5], "1 of 3 rows looked at are not, norms 0.5 to 1"),
        ([1.0, 0.0], "1 of 2 rows looked at are not, norms 0 to 1"),
    ],
)
def test_raw_embeddings_are_refused(
    client: MilvusClient, foreign: Callable[..., str], metric: str, norms: list[float], found: str
) -> None:
    name = foreign(metric)
    add_raw(client, name, norms)
    with pytest.raises(CollectionError, match=f"{metric}, which needs embeddings of norm 1, and {found}; .*COSINE"):
        FocusedCollection.attach(client, name, **FIELDS, model=INFO)


@pytest.mark.parametrize("metric", ["IP", "L2"])
def test_raw_embeddings_written_later_are_noticed_by_a_search(
    client: MilvusClient, foreign: Callable[..., str], metric: str
) -> None:
    collection = FocusedCollection.attach(client, foreign(metric), **FIELDS, model=INFO)
    query = make_rows([0])[0].embedding
    add_raw(client, collection.name, [1.0, 1.0])
    collection.upsert(make_rows([7], seed=1, title="ours"))  # the search after a write of ours sees the present
    assert len(collection.search(query[None], 5)[0]) == 3
    client.upsert(collection.name, [{"pk": 9, "vector": 30 * query, "packed": "", "title": ""}])
    collection.upsert(make_rows([7], seed=1, title="ours"))
    with pytest.raises(CollectionError, match=f"{metric}, which needs embeddings of norm 1, and a 'cosine' is"):
        collection.search(query[None], 5)


def test_by_cosine_raw_embeddings_are_as_good(client: MilvusClient, foreign: Callable[..., str]) -> None:
    name = foreign("COSINE")
    rows = add_raw(client, name, [3.0, 0.1, 500.0])
    collection = FocusedCollection.attach(client, name, **FIELDS, model=INFO)
    client.flush(name)
    query = rows[1].embedding
    found = collection.search(query[None], 3)[0]
    assert found.ids[0] == 1 and found.scores[0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(sorted(found.scores), sorted(float(row.embedding @ query) for row in rows), atol=1e-5)
