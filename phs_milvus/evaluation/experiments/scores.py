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
    default = study.bench.info.default_heads
    compared = methods(study.heads, default)
    names = [method.name for method in compared]
    sections = []
    for condition, level in _CONDITIONS.items():
        queries = study.bench.queries(study.queries, jittered(study, shifted, level))
        outcomes = study.measure(compared, queries)
        best = outcomes[names.index(Focused(Focus(default), "blend").name)]
        note = (
            f"{len(study.bench.states)} images, {len(queries)} queries. Differences are paired, with their standard "
            "error over queries: to whole-image search, and to the default of search with the model's default heads. "
            "Without ANN h=all, both stages keep the same heads."
        )
        rows = [_row(study, outcome, best) for outcome in outcomes]
        sections.append(Section(f"{study.model}, {condition}", note, rows))
    return sections


def _row(study: Study, outcome: Outcome, default: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"method": outcome.method}
    for metric in dict.fromkeys(("MP@10", study.metric)):
        row[metric] = outcome.mean(metric)
        for name, base in (("whole image", study.base), ("the default", default)):
            difference = paired(outcome, base, metric, seed=study.seed)
            row[f"{metric} to {name}"] = f"{difference.mean:+.3f} ± {difference.error:.3f}"
    return row
