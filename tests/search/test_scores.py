"""The named scores by their definitions, thresholds on them, and settings that remember them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import Box, Encoder, Focus, FocusedSearch, Outputs, Query, Reranker
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.search.hits import Hit
from phs_milvus.search.settings import SearchSettings, read_settings
from phs_milvus.search.zooms import encode_zooms

PROMPT = Box(20, 20, 90, 100)
FOCUS = Focus(heads_on=1)
WITH_HEADS = Outputs(head_weights=True)


def by_definition(encoder: Encoder, photo: Path, photos: list[Path], focus: Focus) -> dict[str, dict[str, float]]:
    """Each photo's "ann", "query_db" and "blend" score, without Milvus or anything of `search`."""
    in_database = [encoder.encode(path, outputs=Outputs(state=True)) for path in photos]
    ann = encoder.encode(photo, PROMPT, focus=focus.stage_one)
    query_db = encoder.encode(photo, PROMPT, focus=focus.stage_two, outputs=WITH_HEADS)
    states = np.stack([encoding.state for encoding in in_database])
    scores = {
        "ann": np.stack([encoding.embedding for encoding in in_database]) @ ann.embedding,
        "query_db": encoder.rerank(query_db.embedding[None], query_db.head_weights[None], states)[0],
    }
    scores["blend"] = (scores["ann"] + scores["query_db"]) / 2
    return {
        name: {path.name: float(value) for path, value in zip(photos, values, strict=True)}
        for name, values in scores.items()
    }


@pytest.mark.parametrize("focus", [FOCUS, Focus(), Focus.paper(), Focus(2, attention_shift=0.5, ann_heads=3)])
def test_every_hit_has_each_score_by_its_definition(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path], focus: Focus
) -> None:
    expected = by_definition(encoder, photos[7], photos, focus)
    found = {
        score: photo_search.search(photos[7], PROMPT, limit=41, candidates=41, focus=focus, score=score)
        for score in ("ann", "query_db", "blend")
    }
    for score, result in found.items():
        assert {hit.id: hit.score for hit in result} == pytest.approx(expected[score], abs=1e-5)
        assert [hit.score for hit in result] == sorted((hit.score for hit in result), reverse=True)
    assert [hit.id for hit in photo_search.search(photos[7], PROMPT, limit=41, focus=focus)] == [
        hit.id for hit in found["blend"]
    ]
    ranks = {hit.id: rank for rank, hit in enumerate(found["query_db"], 1)}
    for hit in found["blend"]:
        assert hit.ann_score == pytest.approx(expected["ann"][hit.id], abs=1e-5)
        assert hit.query_db_score == hit.rerank_score == pytest.approx(expected["query_db"][hit.id], abs=1e-5)
        assert hit.blend_score == hit.score and hit.query_db_rank == ranks[hit.id]
    assert all(hit.query_db_score is hit.blend_score is hit.query_db_rank is None for hit in found["ann"])


def test_the_default_focus_finds_candidates_with_every_head(encoder: Encoder, photos: list[Path]) -> None:
    assert Focus() == Focus(None, attention_shift=1, zoom=0, fovea=0, ann_heads="all")
    assert Focus.paper(2) == Focus(2, attention_shift=0, ann_heads=None)
    query = encode_zooms(encoder, photos[3], PROMPT, Focus(1, zoom=(0, 2)))
    assert len(query.per_zoom) == 2
    for part, zoom in zip(query.per_zoom, (0, 2), strict=True):
        ann = encoder.encode(photos[3], PROMPT, focus=Focus("all", zoom=zoom))
        query_db = encoder.encode(photos[3], PROMPT, focus=Focus(1, zoom=zoom), outputs=WITH_HEADS)
        assert np.abs(part.embedding - ann.embedding).max() < 1e-5
        assert np.abs(part.query_db_embedding - query_db.embedding).max() < 1e-5
        assert (part.head_weights == query_db.head_weights).all() and sorted(part.head_weights) == [0, 0, 0, 4]
    # Where both keep the same heads, and without a prompt, there is one encoding.
    for prompt, focus in ((PROMPT, Focus.paper()), (PROMPT, Focus.robust()), (None, Focus())):
        assert encode_zooms(encoder, photos[3], prompt, focus).query_db_embedding is None


def test_an_encoded_query_is_reranked_by_query_db(
    photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]
) -> None:
    query = Reranker(encoder).query(photos[7], PROMPT, focus=FOCUS)
    states = np.stack([encoder.encode(path, outputs=Outputs(state=True)).state for path in photos])
    expected = by_definition(encoder, photos[7], photos, FOCUS)["query_db"]
    assert Reranker(encoder).scores(query, states) == pytest.approx(np.array(list(expected.values())), abs=1e-5)
    (again,) = photo_search.search_many([query], limit=5)
    assert [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in again] == [
        (hit.id, hit.score) for hit in photo_search.search(photos[7], PROMPT, limit=5, focus=FOCUS)
    ]


def test_hits_below_the_threshold_are_left_out(photo_search: FocusedSearch, photos: list[Path]) -> None:
    for score in ("blend", "query_db", "ann"):
        everything = photo_search.search(photos[7], PROMPT, limit=41, score=score)
        cut = (everything[4].score + everything[5].score) / 2
        for limit, count in ((41, 5), (3, 3)):
            found = photo_search.search(photos[7], PROMPT, limit=limit, score=score, min_score=cut)
            assert [hit.id for hit in found] == [hit.id for hit in everything][:count]
    assert photo_search.search(photos[7], PROMPT, min_score=1).hits == []


@pytest.mark.parametrize(
    ("options", "field"),
    [({"score": "best"}, "score"), ({"min_score": 1.5}, "min_score"), ({"min_score": float("nan")}, "min_score")],
)
def test_wrong_scores_are_named(photo_search: FocusedSearch, photos: list[Path], options: dict, field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        photo_search.search_many([Query(photos[0])], **options)
    assert error.value.field == field


def test_a_result_prints_the_scores_it_has(photo_search: FocusedSearch, photos: list[Path]) -> None:
    blend, ann = (photo_search.search(photos[1], PROMPT, limit=2, score=score) for score in ("blend", "ann"))
    assert "Query-DB rank" in str(blend) and "Query-DB" not in str(ann) and "ANN rank" in str(ann)
    names = ["rank", "id", "score", "ann_score", "ann_rank", "query_db_score", "query_db_rank", "blend_score"]
    assert list(blend.rows()[0]) == names
    assert blend.rows()[0]["blend_score"] == blend.rows()[0]["score"]
    with pytest.raises(AttributeError):
        Hit("a", 1.0, 1.0, 1).rerank_score = 0.5


def test_settings_without_a_score_mean_what_they_meant(tmp_path: Path) -> None:
    path = tmp_path / "focus.json"

    def read(text: str) -> SearchSettings:
        path.write_text(text)
        return read_settings(path)

    old = read('{"focus": {"heads_on": 2}, "candidates": 300}')
    assert (old.focus, old.score, old.min_score) == (Focus.paper(2), "query_db", None)
    assert read("{}").focus == Focus.paper()
    assert read('{"focus": {"attention_shift": 0.5}}').focus == Focus(attention_shift=0.5, ann_heads=None)
    new = SearchSettings(Focus(3, zoom=(0.0, 2.0)), 500, "f", {}, "blend", 0.25)
    assert read(json.dumps(asdict(new))) == new
    assert read('{"score": "ann"}') == SearchSettings(score="ann")
    for text, complaint in (
        ('{"score": "best"}', "blend, query_db, ann"),
        ('{"min_score": "high"}', "min_score|-1 to 1"),
    ):
        with pytest.raises(InvalidInput, match=complaint):
            read(text)
