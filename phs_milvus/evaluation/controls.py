"""The strongest control: the best heads for a whole dataset, whatever the query points at."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from phs_milvus.evaluation.bench import Bench, QuerySet
from phs_milvus.evaluation.measures import Outcome, evaluate, folds
from phs_milvus.evaluation.methods import FixedHeads

# Above this many subsets, heads are added one at a time, the best first.
_MOST_SUBSETS = 64


def best_fixed_heads(bench: Bench, queries: QuerySet, count: int, metric: str, *, seed: int = 0) -> Outcome:
    """Query-DB with the `count` heads that are best on the other folds' queries, so that none chooses for itself."""
    heads = bench.info.heads
    outcomes: dict[tuple[int, ...], Outcome] = {}

    def measured(kept: tuple[int, ...]) -> Outcome:
        if kept not in outcomes:
            outcomes[kept] = evaluate(FixedHeads(kept), bench, queries)
        return outcomes[kept]

    every = list(combinations(range(heads), count))
    parts = folds(queries.images, seed=seed)
    chosen: dict[str, np.ndarray] = {}
    for part in np.unique(parts):
        others = parts != part

        def quality(kept: tuple[int, ...], others: np.ndarray = others) -> float:
            return float(measured(kept).values[metric][others].mean())

        best = max(every, key=quality) if len(every) <= _MOST_SUBSETS else _greedy(heads, count, quality)
        for name, values in measured(best).values.items():
            chosen.setdefault(name, np.empty(len(queries)))[~others] = values[~others]
    return Outcome(f"best fixed heads h={count}, Query-DB", chosen, queries.labels, queries.images)


def _greedy(heads: int, count: int, quality: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    kept: tuple[int, ...] = ()
    for _ in range(count):
        larger = [tuple(sorted((*kept, head))) for head in range(heads) if head not in kept]
        kept = max(larger, key=quality)
    return kept
