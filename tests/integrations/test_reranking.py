"""Ranking what others found: the order and the scores of a search, whatever the candidates hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from phs_milvus import Encoder, Examples, Focus, FocusedSearch, ImageError, InvalidInput, Query, StateError
from phs_milvus.integrations.reranking import Candidate, rank
from tests.integrations.support import BOX, expected, query


def shuffled(states: dict[str, str], *, with_states: bool = True) -> list[Candidate]:
    """The photos in an order that no score has."""
    paths = sorted(states, key=lambda path: states[path])
    return [Candidate(Path(path).name, states[path] if with_states else None, path) for path in paths]


@pytest.mark.parametrize("options", [{}, {"score": "query_db"}, {"focus": Focus(2, zoom=(0, 1.25))}])
def test_the_order_and_scores_are_those_of_a_search(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], states: dict[str, str], options: dict
) -> None:
    ids, scores = expected(search, query(photos), **options)
    candidates = shuffled(states)
    ranked = rank(encoder, query(photos), candidates, **options)
    assert [candidates[one.index].name for one in ranked] == ids
    for one in ranked:
        assert one.score == pytest.approx(scores[candidates[one.index].name], abs=2e-4)
        assert set(one.scores) == {"ann_score", "query_db_score", "blend_score"}
    assert [one.index for one in rank(encoder, query(photos), candidates, top_k=3, **options)] == [
        one.index for one in ranked[:3]
    ]


def test_several_examples_and_counter_examples_score_as_in_a_search(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], states: dict[str, str]
) -> None:
    asked = Examples([query(photos, 1), query(photos, 2)], [Query(photos[4])])
    (result,) = search.search_many([asked], limit=100, candidates=1000)
    candidates = shuffled(states)
    ranked = rank(encoder, asked, candidates)
    assert [candidates[one.index].name for one in ranked] == [hit.id for hit in result]
    assert [one.score for one in ranked] == pytest.approx([hit.score for hit in result], abs=2e-4)


def test_pictures_do_where_there_is_no_state(encoder: Encoder, photos: list[Path], states: dict[str, str]) -> None:
    stored, encoded = (rank(encoder, query(photos), shuffled(states, with_states=yes)) for yes in (True, False))
    assert [one.index for one in encoded] == [one.index for one in stored]
    assert [one.score for one in encoded] == pytest.approx([one.score for one in stored], abs=1e-4)


def test_what_cannot_be_scored_comes_last_and_says_why(
    encoder: Encoder, photos: list[Path], states: dict[str, str], tmp_path: Path
) -> None:
    text = tmp_path / "report.pdf"
    text.write_bytes(b"%PDF-1.7")
    good = shuffled(states)[:3]
    bad = [Candidate("cut", "AAAA", None), Candidate("text", None, None), Candidate("pdf", None, str(text))]
    candidates = [*bad, *good]
    ranked = rank(encoder, query(photos), candidates)
    assert [one.index >= 3 for one in ranked] == [True] * 3 + [False] * 3
    errors = [one.error for one in ranked[3:]]
    assert "'cut': expected 256 characters" in errors[0]
    assert "'text' has neither a state nor a picture" in errors[1]
    assert str(text) in errors[2]
    assert all(one.score is None and one.metadata == {"phs_error": one.error} for one in ranked[3:])


def test_where_none_can_be_scored_the_reason_is_raised(encoder: Encoder, photos: list[Path]) -> None:
    with pytest.raises(StateError, match="'a' has neither a state nor a picture"):
        rank(encoder, query(photos), [Candidate("a", None, None), Candidate("b", None, None)])
    with pytest.raises(ImageError, match="nowhere"):
        rank(encoder, query(photos), [Candidate("a", None, "nowhere.jpg")])


def test_wrong_arguments_are_named(encoder: Encoder, photos: list[Path], states: dict[str, str]) -> None:
    candidates = shuffled(states)
    assert rank(encoder, query(photos), []) == []
    for options, field in (({"top_k": 0}, "top_k"), ({"score": "best"}, "score")):
        with pytest.raises(InvalidInput) as error:
            rank(encoder, query(photos), candidates, **options)
        assert error.value.field == field
    with pytest.raises(ImageError, match="not found"):
        rank(encoder, Query("nowhere.jpg", BOX), candidates)
