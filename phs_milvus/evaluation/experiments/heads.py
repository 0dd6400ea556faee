"""The sweep of h_on: kept by the prompt, scaled or not, on the query's side or both, against the controls."""

from __future__ import annotations

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, paired
from phs_milvus.evaluation.methods import Focused
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.report import Section

_VARIANTS = {
    "PHS, Query-DB": Focused(),
    "PHS, Query-Only": Focused(score="ann"),
    "PHS unscaled, Query-DB": Focused(scaled=False),
    "PHS unscaled, Query-Only": Focused(score="ann", scaled=False),
    "random heads, Query-DB": Focused(pick="random"),
    "random heads unscaled, Query-DB": Focused(pick="random", scaled=False),
    "bottom heads, Query-DB": Focused(pick="bottom"),
    "all heads damped to h/H, Query-DB": Focused(pick="all", scaled=False),
}


def run(study: Study) -> list[Section]:
    """One table and one plot over 1 to H heads. With all H, every variant is whole-image search."""
    rows, lines = [], {}
    for name, variant in _VARIANTS.items():
        points = []
        methods = [
            Focused(Focus.paper(count), variant.score, variant.pick, variant.scaled, label=name)
            for count in range(1, study.heads + 1)
        ]
        for count, outcome in enumerate(study.measure(methods), start=1):
            rows.append(study.row(outcome, heads=count))
            points.append((float(count), outcome.mean(study.metric), _error(study, outcome)))
        lines[name] = points
    plot = Plot("heads kept (h_on)", study.metric, lines=lines, level=(study.base.mean(study.metric), "whole image"))
    note = f"{study.prompts[0].capitalize()} prompts. Bars are standard errors of the paired difference to whole-image."
    return [Section(f"{study.model}, {study.heads} heads", note, rows, plot)]


def _error(study: Study, outcome: Outcome) -> float:
    return paired(outcome, study.base, study.metric).error
