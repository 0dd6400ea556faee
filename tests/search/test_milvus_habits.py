"""Searches as somebody writes them who knows MilvusClient.search."""

from __future__ import annotations

from pathlib import Path

import pytest

from phs_milvus import Box, FocusedSearch, InvalidInput, Query, StoredImage
from tests.milvus.support import URI

PROMPT = Box(20, 20, 90, 100)


def test_the_result_as_milvus_gives_it(photo_search: FocusedSearch, photos: list[Path]) -> None:
    """The same loop over what both return."""
    collection = photo_search._collection
    result = photo_search.search(photos[0], PROMPT, limit=5, output_fields=["width", "path"])
    theirs = collection.client.search(
        collection.name,
        data=[result.query.embedding],
        anns_field="embedding",
        limit=5,
        output_fields=["width", "path"],
        consistency_level="Strong",
    )
    for answer in (theirs, result.milvus()):
        assert len(answer) == 1 and len(answer[0]) == 5
        assert [type(hit) for hit in answer[0]] == [type(theirs[0][0])] * 5
        for hit in answer[0]:
            assert set(hit) == {"id", "distance", "entity"} and set(hit["entity"]) == {"width", "path"}
            assert (hit["entity"]["width"], hit.get("width"), hit.entity.get("width")) == (160, 160, 160)
            assert Path(hit["entity"]["path"]).name == hit["id"] == hit.id
    (hits,) = result.milvus()
    assert hits.ids == [hit.id for hit in result] and hits.distances == [hit.score for hit in result]
    assert hits[0]["distance"] == result[0].score
    (nothing,) = photo_search.search(photos[0], filter="width == 3").milvus()
    assert list(nothing) == []


def test_all_fields(photo_search: FocusedSearch, photos: list[Path]) -> None:
    for exclude_query in (False, True):
        result = photo_search.search(photos[0], PROMPT, limit=3, output_fields=["*"], exclude_query=exclude_query)
        assert all(set(hit.fields) == {"id", "digest", "path", "width", "height"} for hit in result)
    assert {hit.id for hit in result}.isdisjoint({photos[0].name, photos[-1].name})


def test_options_reach_milvus(photo_search: FocusedSearch, photos: list[Path]) -> None:
    plain = photo_search.search(photos[0], PROMPT, limit=5)
    options = {
        "partition_names": ["_default"],
        "search_params": {"ef": 1000},
        "consistency_level": "Strong",
        "timeout": 20,
    }
    same = photo_search.search(photos[0], PROMPT, limit=5, **options)
    assert [hit.id for hit in same] == [hit.id for hit in plain]
    (many,) = photo_search.search_many([Query(photos[0], PROMPT)], limit=5, **options)
    assert [hit.id for hit in many] == [hit.id for hit in plain]
    for wrong, field in (
        ({"partition_names": ["none"]}, "partition_names"),
        ({"consistency_level": "strong"}, "consistency_level"),
        ({"search_params": {"metric_type": "L2"}}, "search_params"),
        ({"group_by_field": "none"}, "group_by_field"),
        ({"timeout": 0}, "timeout"),
    ):
        with pytest.raises(InvalidInput) as caught:
            photo_search.search(photos[0], PROMPT, limit=5, **wrong)
        assert caught.value.field == field


def test_a_row_as_the_query_waits_for_nothing(
    photo_search: FocusedSearch, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is looked up as the search itself reads; only a row that is not found is worth a wait."""
    client = photo_search._collection.client
    photo_search.search(photos[3], PROMPT)  # after a write of ours the first search waits, and the first read
    photo_search.search(StoredImage(photos[3].name), PROMPT)
    levels: list[object] = []
    real = client.query

    def query(*arguments: object, **options: object) -> object:
        levels.append(options.get("consistency_level"))
        return real(*arguments, **options)

    monkeypatch.setattr(client, "query", query)
    found = photo_search.search(StoredImage(photos[3].name), PROMPT, limit=3)
    assert [hit.id for hit in found] == [hit.id for hit in photo_search.search(photos[3], PROMPT, limit=3)]
    assert levels == [None if URI else "Strong"]  # Lite is always at the present
    levels.clear()
    photo_search.search(StoredImage(photos[3].name), PROMPT, limit=3, consistency_level="Strong")
    assert levels == ["Strong"]
    with pytest.raises(InvalidInput, match="no row with id 'none'"):
        photo_search.search(StoredImage("none"), PROMPT)
    assert levels[-1] == "Strong"
