"""FocusedCollection: what is written is read back and found, and what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pymilvus import MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, ModelMismatch, StateError
from phs_milvus.milvus.collection import FocusedCollection, Row, quote
from tests.milvus.support import INFO, OTHER, D, E, make_rows

STRANGE = [
    'a"b',
    "a'b",
    "a\\b",
    "a\\",
    "a\nb",
    "a\tb",
    "a\rb",
    "50%",
    "_",
    "é漢字😀",
    "\\n",
    '"',
    "'",
    " a ",
    "a\x01b",
]
STRANGE += ["a\u2028b", "{x}", "$meta", "a, b", '"] or id != "', "a\x0bb", "sub/dir/x.jpg"]


def test_rows_come_back_as_they_went_in(collection: FocusedCollection) -> None:
    rows = make_rows(["b", "a", "c"], title="x", nested={"n": [1, None, "é"]})
    collection.insert(rows)
    assert collection.count() == 3
    found = collection.get(
        ["c", "missing", "a", "b"], ["embedding", "phs_state", "digest", "title", "nested", "not_there"]
    )
    assert [row["id"] for row in found] == ["c", "a", "b"]
    for row, original in zip(found, [rows[2], rows[1], rows[0]], strict=True):
        assert np.array_equal(np.float32(row["embedding"]), original.embedding)
        assert np.array_equal(state_codec.unpack([row["phs_state"]], D)[0], original.state)
        assert (row["digest"], row["title"], row["nested"]) == (original.digest, "x", {"n": [1, None, "é"]})
        assert "not_there" not in row
    assert collection.get(["a"]) == [
        {"id": "a", "digest": rows[1].digest, "title": "x", "nested": {"n": [1, None, "é"]}}
    ]
    assert collection.digests(["a", "missing", "c"]) == {"a": rows[1].digest, "c": rows[2].digest}
    assert collection.digests([]) == {} and collection.get([]) == []


def test_upsert_replaces_the_whole_row(collection: FocusedCollection) -> None:
    collection.insert(make_rows(["a", "b"], old=1))
    rows = make_rows(["b", "c"], seed=5, new=2)
    collection.upsert(rows)
    assert collection.count() == 3
    found = collection.get(["a", "b", "c"])
    assert [set(row) - {"id", "digest"} for row in found] == [{"old"}, {"new"}, {"new"}]
    hit = collection.search(rows[0].embedding[None], 1, with_states=True)[0]
    assert hit.ids == ["b"] and hit.scores[0] == pytest.approx(1, abs=1e-5)
    assert hit.states == [state_codec.pack(rows[0].state)]


def test_delete(collection: FocusedCollection) -> None:
    rows = make_rows(["a", "b", "c"])
    collection.insert(rows)
    collection.delete(["b", "missing"])
    collection.delete([])
    assert collection.count() == 2
    assert sorted(collection.search(rows[1].embedding[None], 3)[0].ids) == ["a", "c"]
    assert list(collection.iterate_ids()) == ["a", "c"]


def test_strange_ids_and_values(collection: FocusedCollection) -> None:
    rows = make_rows(STRANGE)
    for row in rows:
        row.metadata = {"name": row.id}
    collection.insert(rows)
    assert collection.digests(STRANGE) == {row.id: row.digest for row in rows}
    assert [row["id"] for row in collection.get(STRANGE, ["id"])] == STRANGE
    assert list(collection.iterate_ids()) == sorted(STRANGE)
    for text in STRANGE:
        found = collection.search(rows[0].embedding[None], 50, filter=f"name == {quote(text)}", output_fields=["name"])
        assert found[0].ids == [text] and found[0].fields == [{"name": text}]
    collection.upsert(rows)
    assert collection.count() == len(STRANGE)
    for row in STRANGE:
        collection.delete([row])
    assert collection.count() == 0


def test_quote() -> None:
    assert quote('a"b\\c\n\r\t') == '"a\\"b\\\\c\\n\\r\\t"'
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        quote("\udcff.jpg")


def test_search_is_exact_on_a_flat_index(filled: FocusedCollection) -> None:
    rows = make_rows([f"r{index:04d}" for index in range(1000)])
    matrix = np.stack([row.embedding for row in rows])
    queries = np.random.default_rng(9).normal(size=(3, E)).astype(np.float32)
    found = filled.search(queries, 50, output_fields=["name", "album"], with_states=True)
    exact = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ matrix.T
    for candidates, scores in zip(found, exact, strict=True):
        order = np.argsort(-scores)[:50]
        assert candidates.ids == [rows[index].id for index in order]
        assert candidates.scores.dtype == np.float32
        np.testing.assert_allclose(candidates.scores, scores[order], atol=1e-5)
        assert candidates.fields == [{"name": f"n{index}", "album": index % 10} for index in order]
        assert candidates.states is not None
        unpacked = state_codec.unpack(candidates.states, D)
        assert np.array_equal(unpacked, np.stack([rows[index].state for index in order]))
    assert filled.search(queries[:1], 5)[0].states is None
    assert filled.search(queries[:1], 5)[0].fields == [{}] * 5
    star = filled.search(queries[:1], 1, output_fields=["*"])[0].fields[0]
    assert set(star) == {"id", "digest", "album", "name"}


def test_search_with_a_filter(filled: FocusedCollection) -> None:
    query = make_rows(["x"])[0].embedding[None]
    found = filled.search(query, 1000, filter="album == 3 and name != 'n3'", output_fields=["album"])[0]
    assert len(found) == 99 and all(row["album"] == 3 for row in found.fields)
    assert len(filled.search(query, 5, filter='id == "nobody"')[0]) == 0
    for bad in ("foo bar", "album ==", "id > 3", "album == 'x"):
        with pytest.raises(InvalidInput, match="does not take the filter") as caught:
            filled.search(query, 5, filter=bad)
        assert caught.value.field == "filter"


def test_limit_reaches_the_whole_collection(client: MilvusClient, name: str) -> None:
    collection = FocusedCollection.create(client, name, INFO, index_type="HNSW")
    rows = make_rows([f"r{index:04d}" for index in range(3000)])
    collection.insert(rows)
    collection.flush()
    assert len(collection.search(rows[0].embedding[None], 3000, with_states=True)[0]) == 3000
    assert collection.search(rows[7].embedding[None], 16_384)[0].ids[0] == "r0007"
    assert list(collection.iterate_ids()) == [row.id for row in rows]


def test_large_answers_are_cut_into_calls(filled: FocusedCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = np.random.default_rng(9).normal(size=(4, E)).astype(np.float32)
    whole = filled.search(queries, 100, with_states=True)
    for budget in (100_000, 10_000):  # several queries a call; states apart from the search
        monkeypatch.setattr("phs_milvus.milvus.collection.BYTES_PER_ANSWER", budget)
        parts = filled.search(queries, 100, with_states=True)
        assert [(part.ids, part.states, part.fields) for part in parts] == [(p.ids, p.states, p.fields) for p in whole]


def test_pages_of_ids(filled: FocusedCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phs_milvus.milvus.table.IDS_PER_PAGE", 300)
    assert list(filled.iterate_ids()) == [f"r{index:04d}" for index in range(1000)]


def test_many_rows_in_one_insert(collection: FocusedCollection) -> None:
    collection.insert(make_rows([f"{index}" for index in range(1234)], note="n" * 20_000))
    assert collection.count() == 1234


def bad(**changes: object) -> Row:
    row = make_rows(["bad"])[0]
    for key, value in changes.items():
        setattr(row, key, value)
    return row


@pytest.mark.parametrize(
    ("row", "field", "message"),
    [
        (bad(embedding=np.full(E, np.nan, np.float32)), "embedding", "norm nan"),
        (bad(embedding=np.ones(E, np.float32)), "embedding", "norm 4"),
        (bad(embedding=np.ones(E - 1, np.float32)), "embedding", r"\[16\], got \[15\]"),
        (bad(state=np.zeros((2, D + 1), np.float16)), "state", r"\[2, 10\], got \[2, 11\]"),
        (bad(state=np.full((2, D), np.inf, np.float16)), "state", "finite"),
        (bad(id=""), "id", "non-empty"),
        (bad(id=7), "id", "non-empty text, got 7"),
        (bad(id="é" * 513), "id", "1026 bytes; this collection allows 1024"),
        (bad(id="a\udcff"), "id", "not valid Unicode"),
        (bad(id="good"), "id", "twice"),
        (bad(metadata={"embedding": 1}), "metadata", "cannot be called 'embedding'"),
        (bad(metadata={"x": float("nan")}), "metadata", "JSON"),
        (bad(metadata={"x": {1, 2}}), "metadata", "JSON"),
        (bad(metadata={"x": "y" * 70_000}), "metadata", "64 KiB"),
    ],
)
def test_nothing_of_a_bad_batch_is_stored(filled: FocusedCollection, row: Row, field: str, message: str) -> None:
    good = make_rows(["good"])
    for write in (filled.insert, filled.upsert):
        with pytest.raises(InvalidInput, match=message) as caught:
            write([*good, row])
        assert caught.value.field == field
        assert isinstance(caught.value, StateError) == (field == "state")
    assert filled.count() == 1000


def test_bad_searches(filled: FocusedCollection) -> None:
    query = make_rows(["x"])[0].embedding[None]
    for embeddings in (
        query[0],
        query[:, :-1],
        np.zeros((0, E), np.float32),
        np.zeros((1, E)),
        query * np.nan,
    ):
        with pytest.raises(InvalidInput, match="query embeddings"):
            filled.search(embeddings, 5)
    for limit in (0, -1, 16_385):
        with pytest.raises(InvalidInput, match="1 to 16,384") as caught:
            filled.search(query, limit)
        assert caught.value.field == "limit"


def test_output_field_that_cannot_be(filled: FocusedCollection) -> None:
    with pytest.raises(InvalidInput, match="no field 'not a name'") as caught:
        filled.get(["r0001"], ["not a name"])
    assert caught.value.field == "output_fields"


def test_empty_collection(collection: FocusedCollection) -> None:
    assert collection.count() == 0 and list(collection.iterate_ids()) == []
    assert len(collection.search(make_rows(["x"])[0].embedding[None], 5, with_states=True)[0]) == 0
    with pytest.raises(CollectionError, match="is empty; ingest"):
        collection.check_not_empty()
    collection.insert([])
    collection.insert(make_rows(["a"]))
    collection.check_not_empty()


def test_model_mismatch(filled: FocusedCollection) -> None:
    filled.check_model(INFO)
    filled.check_model(replace(INFO, precision="bfloat16"))
    with pytest.raises(ModelMismatch) as caught:
        filled.check_model(OTHER)
    for part in ("'tiny'", "ffff", "image size 56", "'other'", "0000", "image size 112"):
        assert part in str(caught.value)
    with pytest.raises(ModelMismatch, match="'other'"):
        FocusedCollection.attach(
            filled.client, filled.name, embedding_field="embedding", state_field="phs_state", model=OTHER
        )


def test_missing_collection(filled: FocusedCollection) -> None:
    with pytest.raises(CollectionError, match=f"no collection 'nowhere'; there are: .*{filled.name}"):
        FocusedCollection.open(filled.client, "nowhere")


def test_a_collection_dropped_meanwhile(client: MilvusClient, collection: FocusedCollection) -> None:
    client.drop_collection(collection.name)
    for use in (
        collection.count,
        lambda: collection.insert(make_rows(["a"])),
        lambda: collection.search(make_rows(["a"])[0].embedding[None], 1, filter="a == 1"),
    ):
        with pytest.raises(CollectionError, match=collection.name):
            use()


def test_ids_of_the_rows_that_a_filter_takes(filled: FocusedCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several pages, and with an "or" that must not swallow where a page starts."""
    monkeypatch.setattr("phs_milvus.milvus.table.IDS_PER_PAGE", 30)
    taken = list(filled.iterate_ids(filter="album == 3 or album == 7"))
    assert taken == [f"r{index:04d}" for index in range(1000) if index % 10 in (3, 7)]
    assert list(filled.iterate_ids(filter="album == 3", after="r0900")) == [
        f"r{index:04d}" for index in range(903, 1000, 10)
    ]
    assert list(filled.iterate_ids(filter="album == 11")) == []
    for wrong in ("album ==", "album == 3) or (album == 7"):
        with pytest.raises(InvalidInput) as caught:
            list(filled.iterate_ids(filter=wrong))
        assert caught.value.field == "filter"
