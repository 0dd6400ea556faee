"""How well images with the wanted object are ranked, per query; and differences between methods with their uncertainty.

Q = queries, K = images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float32Array
from phs_milvus.evaluation.bench import Bench, BoolArray, QuerySet
from phs_milvus.evaluation.methods import Method

FloatArray = npt.NDArray[np.float64]

# k of MP@k and recall@k. The paper's is 100, for databases of thousands; with fewer relevant images per class than
# that, the smaller one says more.
DEPTH = 100
DEPTHS = (10, 20, DEPTH)
# Queries scored at once; bounds the score matrix.
_BLOCK = 512
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Outcome:
    """A method's metrics: float64 [Q] by the metric's name, and what groups the queries."""

    method: str
    values: dict[str, FloatArray]
    labels: tuple[str, ...]
    images: npt.NDArray[np.int64]

    def mean(self, metric: str) -> float:
        """Over all queries."""
        return float(self.values[metric].mean())

    def per_class(self, metric: str) -> dict[str, float]:
        """The mean over each class's queries."""
        labels = np.array(self.labels)
        return {str(label): float(self.values[metric][labels == label].mean()) for label in np.unique(labels)}


@dataclass(frozen=True)
class Difference:
    """A paired difference: its mean, standard error over queries, and 95% bootstrap interval over images.

    The bootstrap draws images, not queries, because the queries of one image share it.
    """

    mean: float
    error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def evaluate(
    method: Method,
    bench: Bench,
    queries: QuerySet,
    *,
    depths: Sequence[int] = DEPTHS,
    on_block: Callable[[int], object] | None = None,
) -> Outcome:
    """Ranks the dataset for every query, the query's own image left out.

    Args:
        on_block: called with the number of queries done since the last call.
    """
    return evaluate_all(
        [method], bench, queries, depths=depths, on_block=lambda _, count: on_block and on_block(count)
    )[0]


def evaluate_all(
    methods: Sequence[Method],
    bench: Bench,
    queries: QuerySet,
    *,
    depths: Sequence[int] = DEPTHS,
    on_block: Callable[[Method, int], object] | None = None,
) -> list[Outcome]:
    """`evaluate` for several methods, a block of queries at a time, so that they share what `Bench.memo` keeps.

    Args:
        on_block: called with a method and the number of queries it has done since the last call.
    """
    parts: list[list[dict[str, FloatArray]]] = [[] for _ in methods]
    for block in blocks(queries):
        for method, found in zip(methods, parts, strict=True):
            scores = method.scores(bench, block)
            with bench.timed("metrics"):
                found.append(rank_metrics(scores, bench.relevant(block), block.images, depths))
            if on_block:
                on_block(method, len(block))
    return [
        Outcome(
            method.name,
            {name: np.concatenate([part[name] for part in found]) for name in found[0]},
            queries.labels,
            queries.images,
        )
        for method, found in zip(methods, parts, strict=True)
    ]


def blocks(queries: QuerySet) -> Iterator[QuerySet]:
    """The queries in order, few enough at a time that their scores of a whole dataset fit in memory."""
    for start in range(0, len(queries), _BLOCK):
        yield queries.take(range(start, min(start + _BLOCK, len(queries))))


def rank_metrics(
    scores: Float32Array, relevant: BoolArray, own: npt.NDArray[np.int64], depths: Sequence[int] = DEPTHS
) -> dict[str, FloatArray]:
    """Per-query metrics, each float64 [Q].

    Args:
        scores: [Q, K]; of equal scores the lower index ranks first.
        relevant: [Q, K].
        own: int64 [Q], the query's own image, which is not ranked.
        depths: each k of MP@k and recall@k.

    Returns:
        "MP@k": relevant images among the first k, divided by k even where fewer exist; "mAP": average precision over
        the whole ranking; "recall@k": the share of all relevant images among the first k. A query with no relevant
        image has 0 for each.
    """
    rows = np.arange(len(scores))
    ranked_scores = scores.astype(np.float64)
    ranked_scores[rows, own] = -np.inf
    order = np.argsort(-ranked_scores, axis=1, kind="stable")[:, :-1]
    hits = np.take_along_axis(relevant, order, axis=1)
    total = np.maximum(hits.sum(axis=1), 1)
    found = np.cumsum(hits, axis=1)
    precision = found / np.arange(1, hits.shape[1] + 1)
    values = {"mAP": (precision * hits).sum(axis=1) / total}
    for depth in depths:
        within = hits[:, :depth].sum(axis=1)
        values |= {f"MP@{depth}": within / depth, f"recall@{depth}": within / total}
    return values


def paired(outcome: Outcome, base: Outcome, metric: str, *, seed: int = 0) -> Difference:
    """How much better `outcome` is than `base` on the same queries."""
    difference = outcome.values[metric] - base.values[metric]
    low, high = bootstrap(difference, outcome.images, seed=seed)
    return Difference(float(difference.mean()), standard_error(difference), low, high)


def standard_error(values: npt.ArrayLike) -> float:
    """Of the mean of values [Q]; not a number for fewer than two. Of paired differences it is that of the mean gain."""
    sample = np.asarray(values, np.float64)
    return float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else float("nan")


def bootstrap(values: FloatArray, groups: npt.NDArray[np.int64], *, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of `values` when whole groups are drawn with replacement."""
    _, member = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(member, weights=values), np.bincount(member)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_RESAMPLES)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def folds(groups: npt.NDArray[np.int64], *, count: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """int64 [Q]: each query's fold, 0 to count - 1. Queries of one group (an image) share a fold."""
    distinct, member = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    return (order % min(count, len(distinct)))[member]
