"""Which focus holds up: the settings behind `Focus.robust()`, chosen over clean and bad prompts together.

Each query's quality is the mean over the conditions; each fold is answered with what is best on the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.bench import QuerySet
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, folds, paired
from phs_milvus.evaluation.methods import Focused, describe
from phs_milvus.evaluation.report import Section

_HELD_OUT = "chosen on the other folds"
# With roi 1 throughout: the looks that the sweeps of this preset have in the cache.
_ZOOMS: tuple[tuple[float, ...], ...] = (
    (0.0,),
    (1.25,),
    (2.0,),
    (0.0, 1.25),
    (0.0, 2.0),
    (1.25, 2.0),
    (0.0, 1.25, 2.0),
)


def choose(study: Study, conditions: Mapping[str, QuerySet]) -> Section:
    """Every combination of zooms and head count under each condition, with the folds that would choose it."""
    counts = sorted({1, study.bench.info.default_heads, max(1, study.heads - 1), study.heads})
    focuses = [
        Focus(count, attention_shift=1, zoom=zoom if len(zoom) > 1 else zoom[0]) for zoom in _ZOOMS for count in counts
    ]
    methods = [Focused(focus) for focus in focuses]
    by_condition = {name: study.measure(methods, queries) for name, queries in conditions.items()}
    metric = study.metric
    # [conditions, settings, queries], and the mean over the conditions
    every = np.array([[outcome.values[metric] for outcome in outcomes] for outcomes in by_condition.values()])
    values = every.mean(axis=0)
    parts = folds(study.base.images, seed=study.seed)
    winners = {int(part): int(values[:, parts != part].mean(axis=1).argmax()) for part in np.unique(parts)}
    held_out = np.empty((len(conditions), values.shape[1]))
    for part, winner in winners.items():
        held_out[:, parts == part] = every[:, winner, parts == part]
    rows = [
        {
            "focus": describe(focus, None, "top", True),
            **_columns(study, list(conditions), every[:, index]),
            "folds that choose it": list(winners.values()).count(index),
        }
        for index, focus in enumerate(focuses)
    ]
    rows.sort(key=lambda row: -row["mean"])
    chosen = {"focus": _HELD_OUT, **_columns(study, list(conditions), held_out), "folds that choose it": len(winners)}
    note = (
        f"{metric} over {', '.join(conditions)}; differences are paired, to whole-image search. The first row is "
        "chosen on four folds and measured on the fifth; the others are measured on all images."
    )
    return Section(f"{study.model}: which focus holds up", note, [chosen, *rows])


def _columns(study: Study, names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """Each condition's metric and difference, and those of their mean, of one setting's values [conditions, Q]."""
    columns: dict[str, Any] = {}
    for name, of_queries in zip([*names, "mean"], [*values, values.mean(axis=0)], strict=True):
        outcome = Outcome(name, {study.metric: of_queries}, study.base.labels, study.base.images)
        difference = paired(outcome, study.base, study.metric, seed=study.seed)
        columns[name] = outcome.mean(study.metric)
        columns[f"{name}, difference ± SE"] = f"{difference.mean:+.3f} ± {difference.error:.3f}"
    return columns
