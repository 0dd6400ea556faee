"""Several examples of one thing, and counter-examples: "like these, not those".

A score of several examples is the mean of their scores (`phs_milvus.search.parts`), so that all of this is sums of the
rows of one score matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float32Array, Focus
from phs_milvus.evaluation.bench import BoolArray, QuerySet
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, blocks, paired, rank_metrics
from phs_milvus.evaluation.methods import Focused, Method
from phs_milvus.evaluation.report import Section

_COUNTS = (1, 2, 4)
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)

IntArray = npt.NDArray[np.int64]


def run(study: Study) -> list[Section]:
    """Two tables: more examples, and a counter-example from the query's own picture."""
    focus = Focus(study.bench.info.default_heads)
    methods = (Focused(focus, "blend"), Focused(Focus("all")), Focused(Focus.paper(focus.heads_on), "query_db"))
    many, unlike = [], []
    for method in methods:
        scores = np.concatenate([method.scores(study.bench, block) for block in blocks(study.pointed)])
        many += _more_examples(study, method, scores)
        unlike += _counter_examples(study, method, scores)
    return [
        Section(
            f"{study.model}: several examples",
            "The first example is the query; the others are drawn from other images with the same class. All images of "
            f"the {max(_COUNTS)} examples are left out for every number of them, so that differences are paired, to "
            "one example.",
            many,
        ),
        Section(
            f"{study.model}: counter-examples",
            "One example, and as counter-example the largest object of another class in the same picture. Wanted are "
            "images with the first class and without the second. The weight is what the counter-example's score is "
            "multiplied by before it is taken off; differences are paired, to weight 0.",
            unlike,
        ),
    ]


def companions(queries: QuerySet, count: int, seed: int) -> tuple[IntArray, IntArray]:
    """For each query, `count` examples of its class from different images, itself first; drawn at random.

    Returns:
        (rows [R], examples [R, count]): positions in `queries`. Queries of classes with fewer images are not in it.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(queries.labels)
    rows, groups = [], []
    for row in range(len(queries)):
        others = np.flatnonzero((labels == labels[row]) & (queries.images != queries.images[row]))
        if len(others) >= count - 1:
            rows.append(row)
            groups.append([row, *rng.choice(others, count - 1, replace=False)])
    return np.array(rows, np.int64), np.array(groups, np.int64).reshape(len(rows), count)


def rivals(queries: QuerySet) -> tuple[IntArray, IntArray]:
    """(rows [R], rivals [R]): for each query with one, another query of the same image, which is of another class."""
    rows, others = [], []
    for row in range(len(queries)):
        same = np.flatnonzero((queries.images == queries.images[row]) & (np.arange(len(queries)) != row))
        if len(same):
            rows.append(row)
            others.append(same[0])
    return np.array(rows, np.int64), np.array(others, np.int64)


def _more_examples(study: Study, method: Method, scores: Float32Array) -> list[dict[str, Any]]:
    queries = study.pointed
    rows, groups = companions(queries, max(_COUNTS), study.seed)
    if not len(rows):
        return []
    relevant = study.bench.relevant(queries.take(rows))
    outcomes = []
    for count in _COUNTS:
        mean = scores[groups[:, :count]].mean(axis=1)
        outcomes.append(_outcome(f"{count} examples", queries.take(rows), mean, relevant, queries.images[groups]))
    return _rows(study, method, "examples", dict(zip(map(str, _COUNTS), outcomes, strict=True)))


def _counter_examples(study: Study, method: Method, scores: Float32Array) -> list[dict[str, Any]]:
    queries = study.pointed
    rows, others = rivals(queries)
    if not len(rows):
        return []
    wanted, unwanted = (study.bench.relevant(queries.take(some)) for some in (rows, others))
    outcomes = {
        f"{weight:g}": _outcome(
            f"weight {weight:g}",
            queries.take(rows),
            scores[rows] - np.float32(weight) * scores[others],
            wanted & ~unwanted,
            queries.images[rows][:, None],
        )
        for weight in _WEIGHTS
    }
    return _rows(study, method, "weight", outcomes)


def _outcome(name: str, queries: QuerySet, scores: Float32Array, relevant: BoolArray, own: IntArray) -> Outcome:
    """The metrics, with the images `own` [R, n] of each query left out."""
    scores, relevant = scores.copy(), relevant.copy()
    every = np.arange(len(scores))[:, None]
    scores[every, own], relevant[every, own] = -np.inf, False
    return Outcome(name, rank_metrics(scores, relevant, own[:, 0]), queries.labels, queries.images)


def _rows(study: Study, method: Method, column: str, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    base = next(iter(outcomes.values()))
    rows = []
    for name, outcome in outcomes.items():
        row: dict[str, Any] = {"method": method.name, column: name, "queries": len(outcome.labels)}
        for metric in dict.fromkeys(("MP@10", study.metric)):
            difference = paired(outcome, base, metric, seed=study.seed)
            row |= {
                metric: outcome.mean(metric),
                f"{metric} difference": difference.mean,
                f"{metric} SE": difference.error,
            }
        rows.append(row)
    return rows
