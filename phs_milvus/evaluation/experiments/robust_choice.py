"""Which focus holds up: the settings behind `Focus.robust()`, chosen over clean and bad prompts together.

Each query's quality is the mean over the conditions; each fold is answered with what is best on the other folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from phs_milvus.evaluation.bench import QuerySet
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.methods import Focused, describe
from phs_milvus.evaluation.metrics import Outcome, folds, paired
from phs_milvus.evaluation.report import Section
from phs_milvus.types import Focus

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
    """Every scale combination and head count under each condition, with the folds that would choose it."""
    counts = sorted({1, study.bench.info.default_heads, max(1, study.heads - 1), study.heads})
    focuses = [Focus(count, roi=1, zoom=zoom if len(zoom) > 1 else zoom[0]) for zoom in _ZOOMS for count in counts]
    methods = [Focused(focus) for focus in focuses]
    by_condition = {name: study.measure(methods, queries) for name, queries in conditions.items()}
    metric = study.metric
    together = [
        Outcome(
            method.name,
            {metric: np.mean([outcomes[index].values[metric] for outcomes in by_condition.values()], axis=0)},
            study.base.labels,
            study.base.images,
        )
        for index, method in enumerate(methods)
    ]
    values = np.stack([outcome.values[metric] for outcome in together])
    parts = folds(study.base.images, seed=study.seed)
    winners = {int(part): int(values[:, parts != part].mean(axis=1).argmax()) for part in np.unique(parts)}
    held_out = np.empty(values.shape[1])
    for part, winner in winners.items():
        held_out[parts == part] = values[winner, parts == part]
    chosen = Outcome("chosen", {metric: held_out}, study.base.labels, study.base.images)
    rows: list[dict[str, Any]] = [
        {
            "focus": describe(focus, None, "top", True),
            **{name: outcomes[index].mean(metric) for name, outcomes in by_condition.items()},
            "mean": together[index].mean(metric),
            "mean, difference ± SE [95%]": str(paired(together[index], study.base, metric, seed=study.seed)),
            "folds that choose it": list(winners.values()).count(index),
        }
        for index, focus in enumerate(focuses)
    ]
    rows.sort(key=lambda row: -row["mean"])
    note = (
        f"{metric} over {', '.join(conditions)}. Choosing on four folds and measuring on the fifth gives "
        f"{chosen.mean(metric):.3f}, {paired(chosen, study.base, metric, seed=study.seed)} to whole-image search."
    )
    return Section(f"{study.model}: which focus holds up", note, rows)
