"""Table 1 of the paper on your images: every method, under every kind of prompt, with the knobs beyond the paper."""

from __future__ import annotations

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.controls import best_fixed_heads
from phs_milvus.evaluation.edits import CROP, EDITS
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome
from phs_milvus.evaluation.methods import (
    Average,
    Edited,
    Focused,
    Foveal,
    Method,
    TwoStage,
    WholeImage,
)
from phs_milvus.evaluation.report import Section

_CANDIDATES = 200
# (roi, zoom)
_BEYOND: tuple[tuple[float, float | tuple[float, ...]], ...] = (
    (1, 0.0),
    (0, 1.25),
    (0, 2.0),
    (1, 1.25),
    (1, 2.0),
    (1, (0.0, 2.0)),
    (1, (0.0, 1.25, 2.0)),
)


def methods(heads: int, default: int) -> list[Method]:
    """Of a model with `heads` heads that keeps `default` of them."""
    published: list[Method] = [
        WholeImage(),
        *map(Edited, EDITS),
        Foveal(),
        Focused(Focus.paper(default), "ann"),
        Focused(Focus.paper(default)),
        TwoStage(Focus.paper(default), _CANDIDATES),
    ]
    # roi and zoom with fewer heads kept, the default and two thirds of them, and with all: without PHS.
    counts = sorted({default, max(default, 2 * heads // 3)})
    beyond: list[Method] = [
        Focused(Focus(default), "blend"),  # the default of search
        TwoStage(Focus(default), _CANDIDATES, "blend"),
        Focused(Focus.paper(default), "blend"),
        *(Focused(Focus.paper(count)) for count in counts if count != default),
    ]
    for roi, zoom in _BEYOND:
        beyond += [Focused(Focus(count, attention_shift=roi, zoom=zoom)) for count in counts]
        beyond.append(Focused(Focus("all", attention_shift=roi, zoom=zoom)))
    beyond += [
        Average([Edited(CROP), Focused(Focus("all"))]),
        TwoStage(Focus(default, zoom=(0.0, 2.0), ann_heads=None), _CANDIDATES),
    ]
    controls: list[Method] = [
        Focused(Focus.paper(default), scaled=False),
        Focused(Focus.paper(default), scaled=False, pick="all"),
        Focused(Focus.paper(default), pick="random"),
        Focused(Focus.paper(default), pick="bottom"),
    ]
    return published + beyond + controls


def run(study: Study) -> list[Section]:
    """One table for each kind of prompt, and one per class."""
    sections = []
    default = study.bench.info.default_heads
    for kind in study.prompts:
        queries = study.bench.queries(study.queries, kind)
        outcomes = study.measure(methods(study.heads, default), queries)
        outcomes.append(best_fixed_heads(study.bench, queries, default, study.metric, seed=study.seed))
        rows = [study.row(outcome) for outcome in outcomes]
        sections.append(Section(f"{study.model}, {kind} prompts", _note(study), rows, study.bars(outcomes)))
        if kind == study.prompts[0]:
            sections.append(_classes(study, outcomes))
    return sections


def _note(study: Study) -> str:
    return (
        f"{study.metric} with the paired difference to whole-image search, its standard error over queries, and a 95% "
        "bootstrap interval over images. Query-DB reads the database out with the query's heads; two-stage is what a "
        "user gets from Milvus."
    )


def _classes(study: Study, outcomes: list[Outcome]) -> Section:
    """Whole image, PHS, the crop, and the best of all, class by class."""
    by_name = {outcome.method: outcome for outcome in outcomes}
    best = max(outcomes, key=lambda outcome: outcome.mean(study.metric))
    chosen = [outcomes[0], by_name[Focused(Focus.paper(study.bench.info.default_heads)).name], by_name["crop"]]
    if best not in chosen:
        chosen.append(best)
    rows = [
        {
            "class": label,
            "queries": study.pointed.labels.count(label),
            **{outcome.method: outcome.per_class(study.metric)[label] for outcome in chosen},
        }
        for label in sorted(set(study.pointed.labels))
    ]
    return Section(f"{study.model}, per class", f"{study.metric} of each class's queries.", rows)
