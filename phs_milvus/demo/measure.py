"""MP@10 of whole-image and focused search over the demo queries, with paired standard errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from phs_milvus.contract.types import Focus
from phs_milvus.demo.scenes import DemoQuery, Scene
from phs_milvus.evaluation.measures import standard_error
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.queries import Query

TOP = 10
_AT_ONCE = 32


@dataclass(frozen=True)
class Measured:
    """One method's figures.

    Attributes:
        method: its name.
        precision: MP@10, the mean share of relevant pictures among the first ten.
        gain, gain_error: the mean difference to whole-image search over the same queries, and its standard error.
    """

    method: str
    precision: float
    gain: float
    gain_error: float


def measure(
    search: FocusedSearch,
    focus: Focus,
    scenes: Sequence[Scene],
    queries: Sequence[DemoQuery],
    locate: Callable[[Scene], str],
) -> list[Measured]:
    """Runs every query with every method.

    Args:
        search: a search over a collection that holds all of `scenes`.
        focus: the default one, with as many heads kept as PHS keeps here.
        locate: gives the path of a scene's picture.

    Returns:
        the methods' figures, whole image first.
    """
    labels = {scene.name: scene.labels for scene in scenes}
    published = Focus.paper(focus.heads_on)
    methods: list[tuple[str, bool, dict[str, Any]]] = [
        ("whole image", False, {"score": "ann"}),
        ("PHS, Query-Only", True, {"focus": published, "score": "ann"}),
        (
            "PHS, two-stage Query-DB (200 candidates)",
            True,
            {"focus": published, "score": "query_db", "candidates": 200},
        ),
        ("PHS, exhaustive Query-DB", True, {"focus": published, "score": "query_db", "candidates": len(scenes)}),
        ("roi + PHS, blend (200 candidates): the default", True, {"focus": focus, "candidates": 200}),
    ]
    steps = tqdm(total=len(methods) * len(queries), desc="measuring", unit="query")
    scores = {}
    for method, focused, options in methods:
        found: list[float] = []
        for some in _chunks(queries):
            asked = [Query(locate(query.scene), query.prompt if focused else None) for query in some]
            results = search.search_many(asked, limit=TOP, exclude_query=True, **options)
            for query, result in zip(some, results, strict=True):
                found.append(sum(query.target.label in labels[str(hit.id)] for hit in result) / TOP)
            steps.update(len(some))
        scores[method] = np.array(found)
    steps.close()
    return list(_compared(scores))


def chance(scenes: Sequence[Scene], queries: Sequence[DemoQuery]) -> float:
    """The MP@10 of a random order."""
    shares = [np.mean([query.target.label in scene.labels for scene in scenes]) for query in queries]
    return float(np.mean(shares))


def _compared(scores: dict[str, np.ndarray]) -> Iterator[Measured]:
    baseline = next(iter(scores.values()))
    for method, values in scores.items():
        difference = values - baseline
        yield Measured(method, float(values.mean()), float(difference.mean()), standard_error(difference))


def _chunks(queries: Sequence[DemoQuery]) -> Iterator[Sequence[DemoQuery]]:
    for start in range(0, len(queries), _AT_ONCE):
        yield queries[start : start + _AT_ONCE]
