"""The presets about scores: named scores, thresholds, several examples; and the settings that tuning tries."""

from __future__ import annotations

import numpy as np
import pytest

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation import Bench, Focused, QuerySet, object_queries
from phs_milvus.evaluation.experiments import PRESETS, Study
from phs_milvus.evaluation.experiments.examples import companions, rivals
from phs_milvus.evaluation.experiments.thresholds import ratio, table
from phs_milvus.evaluation.memo import Memo
from phs_milvus.evaluation.queries import evenly
from phs_milvus.evaluation.tune import grid
from phs_milvus.pointing.prompts import Mask
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.queries import Examples, Query


@pytest.fixture
def study(bench: Bench) -> Study:
    return Study(bench, object_queries(bench.dataset), ("box",))


def test_scores(study: Study) -> None:
    clean, shifted = PRESETS["scores"].run(study)
    names = [row["method"] for row in clean.rows]
    assert len(set(names)) == len(names) and names == [row["method"] for row in shifted.rows]
    assert {"roi 1", "PHS h=1, blend", "roi 1, PHS h=1, Query-DB", "roi 1, PHS h=1, ANN h=all, blend"} <= set(names)
    assert clean.rows[0] == shifted.rows[0]  # the whole image
    assert any(one["mAP"] != other["mAP"] for one, other in zip(clean.rows, shifted.rows, strict=True))


def test_thresholds(study: Study) -> None:
    sections = PRESETS["thresholds"].run(study)
    assert len({section.heading for section in sections}) == len(sections) == 4
    for section in sections:
        kept = [row["hits a query"] for row in section.rows]
        assert kept == sorted(kept) and kept[0] == pytest.approx(1, abs=0.2)
        assert all(0 <= row["precision"] <= 1 and 0 <= row["relevant kept"] <= 1 for row in section.rows)


def test_a_threshold_by_definition() -> None:
    scores = np.array([[0.9, 0.5, -np.inf, 0.1], [0.8, 0.7, 0.2, -np.inf]], np.float32)
    relevant = np.array([[True, False, False, True], [True, True, True, False]])
    strict, loose = table(scores, relevant)
    assert strict == {
        "min_score": 0.7,
        "hits a query": 1.5,
        "queries without hits": 0,
        "precision": 1,
        "its SE": 0,
        "relevant kept": pytest.approx(3 / 5),
    }
    assert (loose["min_score"], loose["precision"]) == (0.2, 0.8)


def test_the_error_of_a_ratio_is_that_of_a_mean_where_wholes_are_equal() -> None:
    parts = np.random.default_rng(0).integers(0, 11, 200)
    share, error = ratio(parts, np.full(200, 10))
    assert share == pytest.approx(parts.mean() / 10)
    assert error == pytest.approx((parts / 10).std(ddof=1) / np.sqrt(200))
    assert all(np.isnan(ratio(parts, np.zeros(200, np.int64))))


def test_examples(study: Study) -> None:
    many, unlike = PRESETS["examples"].run(study)
    assert [row["examples"] for row in many.rows] == ["1", "2", "4"] * 3
    assert [row["weight"] for row in unlike.rows] == ["0", "0.25", "0.5", "0.75", "1"] * 3
    for rows, group in ((many.rows, 3), (unlike.rows, 5)):
        assert all(row["mAP difference"] == 0 for row in rows[::group])
        assert any(row["mAP difference"] for row in rows)


def test_companions_are_of_the_same_class_and_of_different_images(study: Study) -> None:
    queries = study.pointed
    rows, groups = companions(queries, 4, seed=0)
    assert len(rows) == len(queries) and (groups[:, 0] == rows).all()
    for group in groups:
        assert len({queries.labels[row] for row in group}) == 1
        assert (queries.images[group[1:]] != queries.images[group[0]]).all()
    assert not np.array_equal(companions(queries, 4, seed=1)[1], groups)
    rows, others = rivals(queries)
    assert (queries.images[rows] == queries.images[others]).all() and len(rows) == len(queries)
    assert all(queries.labels[one] != queries.labels[other] for one, other in zip(rows, others, strict=True))


def test_measured_examples_are_what_search_does(bench: Bench, queries: QuerySet) -> None:
    """The mean of the rows of a score matrix, as the preset has it, is the score that a user gets."""
    focus = Focus(1, zoom=(0.0, 1.25))
    scores = Focused(focus, "blend").scores(bench, queries)
    asked = [
        Query(bench.dataset.images[image].path, Mask(mask))
        for image, mask in zip(queries.images[:3], queries.masks[:3], strict=True)
    ]
    search = FocusedSearch(bench.collection, bench.encoder)
    (result,) = search.search_many([Examples(asked)], limit=50, candidates=50, focus=focus)
    found = {int(str(hit.id)): hit.score for hit in result}
    assert len(found) == 50
    assert [found[index] for index in range(50)] == pytest.approx(scores[:3].mean(axis=0).tolist(), abs=2e-3)


def test_tuning_tries_every_kind_of_setting() -> None:
    settings = grid(12)
    assert len({setting.name for setting in settings}) == len(settings)
    assert {setting.score for setting in settings} == {"ann", "query_db", "blend"}
    assert Focused(Focus(4), "blend") in settings and Focused(Focus("all", zoom=1.25), "ann") in settings
    assert {0.0, 1.0, 1.25, 2.0, (0.0, 2.0)} <= {setting.focus.zoom for setting in settings}
    assert all(setting.focus.heads_on in (1, "all") for setting in grid(2))


def test_even_steps() -> None:
    numbers = list(range(10))
    assert evenly(numbers, 4) == [0, 2, 5, 7] and evenly(numbers, None) == evenly(numbers, 99) == numbers


def test_a_memo_forgets_what_was_used_longest_ago() -> None:
    memo, made = Memo(most_bytes=3 * 400), []

    def ask(name: str) -> None:
        memo.once(name, lambda: made.append(name) or np.zeros(100, np.float32))

    for name in ("a", "b", "c", "a", "d", "a", "b"):
        ask(name)
    assert made == ["a", "b", "c", "d", "b"]
