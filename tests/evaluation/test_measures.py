"""Metrics on rankings small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phs_milvus.evaluation.measures import Outcome, bootstrap, folds, paired, rank_metrics


def outcome(values: list[float], images: list[int], labels: str = "") -> Outcome:
    return Outcome("m", {"MP@100": np.array(values)}, tuple(labels), np.array(images))


def test_one_ranking_by_hand() -> None:
    # Own image 0; then 3 (relevant), 1 (not), 4 (relevant), 2 (not), in order of score.
    scores = np.array([[9.0, 0.7, 0.1, 0.9, 0.5]], np.float32)
    relevant = np.array([[True, False, False, True, True]])
    values = rank_metrics(scores, relevant, np.array([0]), depths=(2, 3, 100))
    assert values["MP@2"] == pytest.approx([1 / 2])
    assert values["MP@3"] == pytest.approx([2 / 3])
    assert values["MP@100"] == pytest.approx([2 / 100])
    assert values["recall@2"] == pytest.approx([1 / 2])
    assert values["recall@3"] == pytest.approx([1.0])
    assert values["mAP"] == pytest.approx([(1 / 1 + 2 / 3) / 2])


def test_ties_go_to_the_lower_index_and_no_relevant_image_is_zero() -> None:
    scores = np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], np.float32)
    relevant = np.array([[False, True, False], [False, False, True]])
    values = rank_metrics(scores, relevant, np.array([0, 2]), depths=(1,))
    assert values["MP@1"].tolist() == [1.0, 0.0]
    assert values["mAP"].tolist() == [1.0, 0.0]


def test_paired_difference_by_hand() -> None:
    difference = paired(outcome([0.5, 0.7, 0.2], [0, 1, 2]), outcome([0.4, 0.4, 0.4], [0, 1, 2]), "MP@100")
    assert difference.mean == pytest.approx(0.2 / 3)
    assert difference.error == pytest.approx(np.std([0.1, 0.3, -0.2], ddof=1) / 3**0.5)
    assert difference.low <= difference.mean <= difference.high


def test_bootstrap_draws_whole_images() -> None:
    """40 copies of 2 images are 2 observations, not 80: the interval reaches both of them."""
    values, groups = np.repeat([0.0, 1.0], 40), np.repeat([7, 9], 40)
    assert bootstrap(values, groups) == (0.0, 1.0)
    low, high = bootstrap(values, np.arange(80))
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65


def test_bootstrap_interval_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = bootstrap(values, np.arange(400))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_per_class_and_mean() -> None:
    result = outcome([0.1, 0.3, 0.8], [0, 1, 1], "aab")
    assert result.mean("MP@100") == pytest.approx(0.4)
    assert result.per_class("MP@100") == pytest.approx({"a": 0.2, "b": 0.8})


def test_folds_keep_images_together_and_are_even() -> None:
    images = np.repeat(np.arange(50), 3)
    parts = folds(images, count=5, seed=1)
    assert (parts.reshape(50, 3) == parts[::3, None]).all()
    assert np.bincount(parts).tolist() == [30] * 5
    assert not np.array_equal(parts, folds(images, count=5, seed=2))
