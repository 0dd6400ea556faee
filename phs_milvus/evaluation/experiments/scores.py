"""The named scores of a search, for boxes as labelled and as people draw them: what the default was chosen by."""

from __future__ import annotations

from typing import Any

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.experiments.robustness import jittered, shifted
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, paired
from phs_milvus.evaluation.methods import Focused, Method, WholeImage
from phs_milvus.evaluation.report import Section
from phs_milvus.search.scores import SCORES

_CONDITIONS = {"boxes as labelled": 0.0, "box sides shifted by 0.3": 0.3}
_ZOOMS: tuple[float | tuple[float, ...], ...] = (1.0, 1.25, 2.0, (0.0, 1.25, 2.0))


def methods(heads: int, default: int) -> list[Method]:
    """With a quarter of the heads and with the model's default, of a model with `heads` heads."""
    chosen: list[Method] = [WholeImage(), Focused(Focus("all"))]
    for count in sorted({default, max(1, heads // 4)}):
        for focus in (Focus.paper(count), Focus(count, ann_heads=None)):
            chosen += [Focused(focus, score) for score in reversed(SCORES)]
        chosen.append(Focused(Focus(count), "blend"))
    for zoom in _ZOOMS:
        chosen += [Focused(Focus("all", zoom=zoom)), Focused(Focus(default, zoom=zoom), "blend")]
    return chosen


def run(study: Study) -> list[Section]:
    """One table for each way of pointing."""
    sections = []
    for name, level in _CONDITIONS.items():
        queries = study.bench.queries(study.queries, jittered(study, shifted, level))
        rows = [
            _row(study, outcome)
            for outcome in study.measure(methods(study.heads, study.bench.info.default_heads), queries)
        ]
        note = (
            f"{len(study.bench.states)} images, {len(queries)} queries. Differences are paired, to whole-image search, "
            "with their standard error over queries. Without a line of ANN heads, both stages keep the same heads."
        )
        sections.append(Section(f"{study.model}, {name}", note, rows))
    return sections


def _row(study: Study, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"method": outcome.method}
    for metric in dict.fromkeys(("MP@10", study.metric)):
        difference = paired(outcome, study.base, metric, seed=study.seed)
        row |= {metric: outcome.mean(metric), f"{metric} difference": difference.mean, f"{metric} SE": difference.error}
    return row
