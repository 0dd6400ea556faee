"""What a threshold on the score keeps: for choosing the `min_score` of a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float32Array, Focus
from phs_milvus.evaluation.bench import BoolArray
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import blocks
from phs_milvus.evaluation.methods import Focused, Method
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.report import Section

# Hits that a threshold keeps of each query, on average.
_HITS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def run(study: Study) -> list[Section]:
    """One table for each score of the default focus, and one for PHS as published."""
    default = study.bench.info.default_heads
    methods = (
        Focused(Focus(default), "blend"),
        Focused(Focus(default), "query_db"),
        Focused(Focus(default), "ann"),
        Focused(Focus.paper(default), "query_db"),
    )
    return [section(study, method) for method in methods]


def section(study: Study, method: Method) -> Section:
    """The table and plot of one method."""
    scores, relevant = _scored(study, method)
    rows = table(scores, relevant)
    line = [(row["min_score"], row["precision"], row["its SE"]) for row in rows]
    note = (
        f"{len(scores)} queries, each with its own image left out. Precision: the share of the kept hits that hold an "
        "object of the query's class, over all queries together; its standard error is over queries. Relevant kept: "
        f"the share of all images with such an object that is kept. Precision of a random order: {relevant.mean():.3f}."
    )
    plot = Plot("min_score", "precision", lines={method.name: line})
    return Section(f"{study.model}: thresholds, {method.name}", note, rows, plot)


def table(scores: Float32Array, relevant: BoolArray) -> list[dict[str, Any]]:
    """A row for each threshold, the strictest first.

    Args:
        scores: [Q, K]; -inf for images that are not ranked.
        relevant: [Q, K].
    """
    ordered = np.sort(scores[np.isfinite(scores)])[::-1]
    rows, seen = [], set()
    for hits in _HITS:
        if hits * len(scores) >= len(ordered) or (threshold := round(float(ordered[hits * len(scores)]), 3)) in seen:
            continue
        seen.add(threshold)
        kept = scores >= threshold
        right = kept & relevant
        precision, error = ratio(right.sum(axis=1), kept.sum(axis=1))
        recall, _ = ratio(right.sum(axis=1), relevant.sum(axis=1))
        rows.append(
            {
                "min_score": threshold,
                "hits a query": float(kept.sum(axis=1).mean()),
                "queries without hits": float((~kept.any(axis=1)).mean()),
                "precision": precision,
                "its SE": error,
                "relevant kept": recall,
            }
        )
    return rows


def ratio(parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The sum of parts [Q] over that of wholes [Q], and its standard error over queries; not a number for no wholes."""
    whole, count = wholes.sum(), len(wholes)
    if not whole:
        return float("nan"), float("nan")
    share = parts.sum() / whole
    # Of a ratio of sums: each query's surplus over the common share (Cochran, Sampling Techniques, section 2.11).
    surplus = parts - share * wholes
    error = np.sqrt((surplus**2).sum() * count / max(count - 1, 1)) / whole
    return float(share), float(error)


def _scored(study: Study, method: Method) -> tuple[Float32Array, BoolArray]:
    """(scores, relevance) [Q, K] of the study's queries, each query's own image at -inf and not relevant."""
    scores: list[Float32Array] = []
    relevant: list[BoolArray] = []
    for block in blocks(study.pointed):
        rows = np.arange(len(block))
        ranked, right = method.scores(study.bench, block).copy(), study.bench.relevant(block).copy()
        ranked[rows, block.images], right[rows, block.images] = -np.inf, False
        scores.append(ranked)
        relevant.append(right)
    return np.concatenate(scores), np.concatenate(relevant)
