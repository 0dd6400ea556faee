"""Several examples and counter-examples, and leaving out the pictures that one searches with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pymilvus import DataType

from phs_milvus import (
    Box,
    CollectionError,
    Encoder,
    Examples,
    Focus,
    FocusedCollection,
    FocusedSearch,
    Outputs,
    Query,
    Reranker,
    StoredImage,
    state,
)
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.search.hits import SearchResult
from phs_milvus.search.parts import UNLIKE_WEIGHT

PROMPT = Box(20, 20, 90, 100)
FOCUS = Focus(heads_on=1, zoom=(0, 2))
EVERYTHING = {"limit": 41, "candidates": 41, "focus": FOCUS}


def scores_of(search: FocusedSearch, query: Query, score: str) -> dict[str, float]:
    return {hit.id: hit.score for hit in search.search(query.image, query.prompt, score=score, **EVERYTHING)}


@pytest.mark.parametrize("score", ["ann", "query_db", "blend"])
def test_a_score_of_several_examples_is_the_mean_of_theirs(
    photo_search: FocusedSearch, photos: list[Path], score: str
) -> None:
    like = [Query(photos[1], PROMPT), Query(StoredImage(photos[2].name), Box(0, 0, 60, 60)), Query(photos[3])]
    unlike = [Query(photos[4], PROMPT), Query(photos[5])]
    liked = [scores_of(photo_search, query, score) for query in like]
    disliked = [scores_of(photo_search, query, score) for query in unlike]
    expected = {key: np.mean([one[key] for one in liked]) for key in liked[0]}
    result = photo_search.search(like, score=score, **EVERYTHING)
    assert {hit.id: hit.score for hit in result} == pytest.approx(expected, abs=1e-5)
    apart = {key: mean - UNLIKE_WEIGHT * np.mean([one[key] for one in disliked]) for key, mean in expected.items()}
    result = photo_search.search(like, unlike=unlike, score=score, **EVERYTHING)
    assert {hit.id: hit.score for hit in result} == pytest.approx(apart, abs=1e-5)
    assert [hit.score for hit in result] == sorted((hit.score for hit in result), reverse=True)


def names(result: SearchResult) -> list[object]:
    """Of the pictures, one of which is there twice: its two rows are tied, and either may come first."""
    return ["image-0000.jpg" if hit.id == "copy.jpg" else hit.id for hit in result]


def test_examples_stand_beside_other_queries(photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]) -> None:
    encoded = Reranker(encoder).query(photos[2], PROMPT)
    pair = Examples([Query(photos[1], PROMPT), encoded])
    first, second = photo_search.search_many([pair, Query(photos[3])], limit=5)
    assert names(first) == names(photo_search.search([*pair.like], limit=5))
    assert names(second) == names(photo_search.search(photos[3], limit=5))
    apart = photo_search.search(photos[1], PROMPT, unlike=[Query(photos[2])], limit=5)
    assert names(apart) == names(photo_search.search([Query(photos[1], PROMPT)], unlike=[Query(photos[2])], limit=5))


def test_wrong_examples_are_named(photo_search: FocusedSearch, photos: list[Path]) -> None:
    good, bad = Query(photos[1], PROMPT), Query("none.jpg")
    for call, message in (
        (lambda: photo_search.search([good, bad]), "^image: like 1: .*not found|^like 1: .*not found"),
        (lambda: photo_search.search([good], unlike=[bad]), "unlike 0: .*not found"),
        (lambda: photo_search.search_many([good, Examples([good], [good, bad])]), "query 1, unlike 1: .*not found"),
        (lambda: photo_search.search([]), "at least one example"),
        (lambda: photo_search.search([good], PROMPT), "each example has its own"),
        (lambda: photo_search.search([str(photos[1])]), "a Query or an Encoding, got str"),
        (lambda: photo_search.search_many([photos[1]]), "a Query, Examples or an Encoding, got PosixPath"),
    ):
        with pytest.raises(InvalidInput, match=message):
            call()


def test_the_querys_own_picture_can_be_left_out(photo_search: FocusedSearch, photos: list[Path]) -> None:
    """By its bytes: it is there twice, under two names, and comes from a file, from bytes, or from its row."""
    for image in (photos[0], photos[0].read_bytes(), StoredImage("copy.jpg")):
        for score in ("ann", "blend"):
            whole = photo_search.search(image, PROMPT, limit=41, score=score)
            others = photo_search.search(image, PROMPT, limit=10, score=score, exclude_query=True)
            expected = [hit.id for hit in whole if hit.id not in (photos[0].name, "copy.jpg")]
            assert [hit.id for hit in others] == expected[:10]
            assert photo_search.search(image, score="ann", exclude_query=True)[0].ann_rank == 1
    assert {hit.id for hit in photo_search.search(photos[0], limit=2)} == {photos[0].name, "copy.jpg"}
    # Other bytes of the same picture are another file.
    pixels = Image.open(photos[0])
    assert photos[0].name in [hit.id for hit in photo_search.search(pixels, exclude_query=True)]


def test_what_was_asked_for_stays_when_the_query_is_left_out(photo_search: FocusedSearch, photos: list[Path]) -> None:
    (hit,) = photo_search.search(photos[0], limit=1, exclude_query=True, output_fields=["width"])
    assert hit.fields == {"width": 160}
    (hit,) = photo_search.search(photos[0], limit=1, exclude_query=True, output_fields=["digest"])
    assert len(hit.fields["digest"]) == 64
    both = photo_search.search([Query(photos[0]), Query(photos[1])], unlike=[Query(photos[2])], exclude_query=True)
    assert not {"copy.jpg", *(path.name for path in photos[:3])} & {hit.id for hit in both}
    each = photo_search.search_many([Query(photos[1]), Query(photos[2])], limit=39, exclude_query=True)
    assert [path.name in {hit.id for hit in result} for path, result in zip(photos[1:3], each, strict=True)] == [
        False
    ] * 2
    assert photos[2].name in {hit.id for hit in each[0]}


def test_leaving_out_needs_digests_and_a_picture(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]
) -> None:
    with pytest.raises(InvalidInput, match="encoded already") as error:
        photo_search.search_many([Reranker(encoder).query(photos[0])], exclude_query=True)
    assert error.value.field == "exclude_query"
    client = photo_search._collection.client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.info.embedding_size)
    schema.add_field("packed", DataType.VARCHAR, max_length=state.text_length(encoder.info.hidden_size))
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection("without_digests", schema=schema, index_params=index)
    fields = {"embedding_field": "vector", "state_field": "packed"}
    collection = FocusedCollection.attach(client, "without_digests", **fields, model=encoder.info)
    row = encoder.encode(photos[0], outputs=Outputs(state=True))
    client.insert("without_digests", [{"pk": 1, "vector": row.embedding, "packed": state.pack(row.state)}])
    search = FocusedSearch(collection, encoder)
    assert collection.count() == 1 and search.search(photos[0])[0].id == 1
    with pytest.raises(CollectionError, match="'without_digests' has no digests.*'digest'"):
        search.search(photos[0], exclude_query=True)
    client.drop_collection("without_digests")
