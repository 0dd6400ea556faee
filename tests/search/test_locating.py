"""Where the thing is in each hit, and the third stage, against the server's own answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phs_milvus import Box, Encoder, Focus, FocusedSearch, Query
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.location import Location
from phs_milvus.search.locating import target_of

PROMPT = Box(20, 20, 90, 100)


def test_every_hit_is_looked_into_where_its_picture_is(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]
) -> None:
    result = photo_search.search(photos[7], PROMPT, limit=6)
    target = target_of(encoder, photos[7], PROMPT, Focus(), boxes=2)
    for images in (None, photos[0].parent, lambda row_id: photos[0].parent / row_id):
        located = result.locate(images, boxes=2)
        assert [hit.id for hit in located] == [hit.id for hit in result] and located.locate_ms > 0
        alone = encoder.locate(target, [photos[0].parent / str(hit.id) for hit in located])
        for hit, expected in zip(located, alone, strict=True):
            assert isinstance(expected, Location) and hit.location is not None
            # What the server holds of a picture is rounded.
            assert np.abs(hit.location.evidence - expected.evidence).max() < 1e-2
            assert [box.region for box in hit.boxes] == [box.region for box in expected.boxes]
            assert 1 <= len(hit.boxes) <= 2
            # The order and the score are those of the search; the third stage's score is at hand.
            parts = [hit.blend_score, hit.location.score, hit.location.match]
            assert hit.localized_score == pytest.approx(np.mean(parts), abs=1e-5) and hit.score == hit.blend_score
            for (x0, y0, x1, y1), score in hit.boxes:
                assert 0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 120 and -1 <= score <= 1


def test_the_third_stage_ranks_what_was_looked_into(photo_search: FocusedSearch, photos: list[Path]) -> None:
    second = photo_search.search(photos[7], PROMPT, limit=20).locate()
    third = photo_search.search(photos[7], PROMPT, limit=8, localize=12)
    assert len(third) == 8 and third.locate_ms > 0
    expected = sorted(second[:12], key=lambda hit: -hit.localized_score)[:8]
    assert [hit.id for hit in third] == [hit.id for hit in expected]
    assert all(hit.score == hit.localized_score and hit.boxes for hit in third)
    few = photo_search.search(photos[7], PROMPT, limit=8, localize=3)
    assert [hit.location is not None for hit in few] == [True] * 3 + [False] * 5
    assert [hit.id for hit in few[3:]] == [hit.id for hit in second[3:8]]
    floor = (third[3].score + third[4].score) / 2
    strict = photo_search.search(photos[7], PROMPT, limit=8, localize=12, min_score=floor)
    assert [hit.id for hit in strict] == [hit.id for hit in third if hit.score >= floor]


def test_the_querys_picture_is_sent_once(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bool] = []
    call = encoder._call

    def counting(method: object, request: object, timeout: float | None) -> object:
        if hasattr(request, "digest"):
            sent.append(bool(request.image))
        return call(method, request, timeout)

    monkeypatch.setattr(encoder, "_call", counting)
    third = photo_search.search(photos[11], PROMPT, limit=4, localize=4)
    third.locate(boxes=1)
    assert sent == [True, False, False]
    del sent[:]
    both = photo_search.search_many([Query(photos[12], PROMPT), Query(photos[13].read_bytes())], limit=3)
    both[1].locate()
    assert sent == [True, True, False]


def test_looking_again_changes_no_score(photo_search: FocusedSearch, photos: list[Path]) -> None:
    third = photo_search.search(photos[7], PROMPT, limit=5, localize=5)
    again = third.locate(boxes=1)
    assert [(hit.id, hit.score, hit.localized_score) for hit in again] == [
        (hit.id, hit.score, hit.localized_score) for hit in third
    ]
    assert all(len(hit.boxes) == 1 for hit in again)


def test_a_missing_picture_keeps_its_score_and_is_said(photo_search: FocusedSearch, photos: list[Path]) -> None:
    missing = photos[3].name
    result = photo_search.search(
        photos[7],
        PROMPT,
        limit=41,
        localize=41,
        images=lambda row_id: None if row_id == missing else photos[0].parent / row_id,
    )
    (lost,) = [hit for hit in result if hit.location_error]
    assert lost.id == missing and missing in lost.location_error and lost.boxes == ()
    assert lost.score == lost.blend_score and lost.localized_score is None
    rows = {row["id"]: row for row in result.rows()}
    assert "boxes" not in rows[missing] and rows[missing]["location_error"] == lost.location_error
    other = rows[photos[7].name]
    assert set(other["boxes"][0]) == {"box", "score"} and other["localized_score"] == other["score"]


def test_without_a_prompt_and_with_several_examples(photo_search: FocusedSearch, photos: list[Path]) -> None:
    whole = photo_search.search(photos[7], limit=3).locate()
    assert all(hit.boxes and hit.location.match == 0 for hit in whole)
    several = photo_search.search([Query(photos[7], PROMPT), Query(photos[8], PROMPT)], limit=3, localize=3)
    assert all(hit.boxes for hit in several)


def test_mistakes_of_locating(photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]) -> None:
    for wrong, field in (
        ({"localize": 0}, "localize"),
        ({"limit": 0, "localize": 20}, "limit"),
        ({"limit": 10, "localize": 20, "candidates": 15}, "candidates"),
        ({"localize": 2, "boxes": 0}, "boxes"),
    ):
        with pytest.raises(InvalidInput) as caught:
            photo_search.search(photos[7], PROMPT, **wrong)
        assert caught.value.field == field
    result = photo_search.search(photos[7], PROMPT, limit=2)
    with pytest.raises(InvalidInput) as caught:
        result.locate("no/such/folder")
    assert caught.value.field == "images"
    for name, value in (("threshold", 1.5), ("threshold", 0.0), ("boxes", -1)):
        with pytest.raises(InvalidInput) as caught:
            result.locate(**{name: value})
        assert caught.value.field == name
    encoded = photo_search.search([encoder.encode(photos[7])], limit=2, score="ann")
    with pytest.raises(InvalidInput, match="Encoding"):
        encoded.locate()


def test_a_picture_that_was_opened_is_searched_like_its_path(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]
) -> None:
    picture = encoder.open(photos[9])
    for prompt in (PROMPT, Box(60, 30, 150, 110), None):
        by_path, opened = photo_search.search(photos[9], prompt), photo_search.search(picture, prompt)
        scores = {hit.id: hit.score for hit in by_path}
        assert all(abs(hit.score - scores.get(hit.id, hit.score)) < 2e-3 for hit in opened)
        assert opened[0].id == by_path[0].id
    assert picture.sent == {None}
