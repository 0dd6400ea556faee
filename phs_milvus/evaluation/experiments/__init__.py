"""The paper's experiments, and those beyond it, as named presets: each turns a Study into sections of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phs_milvus.evaluation.experiments import (
    examples,
    heads,
    overhead,
    recall,
    robustness,
    scores,
    small_models,
    table1,
    thresholds,
)
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.report import Section

__all__ = ["PRESETS", "Preset", "Study"]


@dataclass(frozen=True)
class Preset:
    """A named experiment; `run` is called once for each model.

    Attributes:
        compare: what to show of several models together, given what `run` returned for each.
    """

    title: str
    run: Callable[[Study], list[Section]]
    compare: Callable[[Sequence[Sequence[Section]]], list[Section]] | None = None


PRESETS = {
    "table1": Preset("Every way of pointing", table1.run),
    "scores": Preset("The scores of a search", scores.run),
    "thresholds": Preset("What a score threshold keeps", thresholds.run),
    "examples": Preset("Several examples and counter-examples", examples.run),
    "heads": Preset("How many heads to keep", heads.run),
    "robustness": Preset("When people point badly", robustness.run),
    "small-models": Preset(
        "How many heads a model has, and how different they are", small_models.run, small_models.compare
    ),
    "overhead": Preset("What it costs", overhead.run, overhead.compare),
    "recall": Preset("How many candidates two-stage search needs", recall.run),
}
