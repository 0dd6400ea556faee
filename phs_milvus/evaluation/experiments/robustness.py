"""Prompts as people give them: boxes off at the corners or in size, clicks beside the middle, sloppy outlines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from phs_milvus.contract.types import Focus
from phs_milvus.evaluation import perturb
from phs_milvus.evaluation.edits import CROP, MASK_MEAN
from phs_milvus.evaluation.experiments.robust_choice import choose
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import paired
from phs_milvus.evaluation.methods import Average, Edited, Focused, Method, WholeImage
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.queries import ObjectQuery, box_of, centre_of, outline_of
from phs_milvus.evaluation.report import Section
from phs_milvus.pointing.prompts import Mask, Point, Prompt, to_array

Draw = Callable[[ObjectQuery, int, int, float, np.random.Generator], Prompt]

_CORNERS = (0.0, 0.1, 0.2, 0.3, 0.5)
_SCALES = (0.0, 0.25, 0.5)
_POINTS = (0.0, 0.25, 0.5)
_SHARES = (-0.3, 0.0, 0.3)


def methods(default: int) -> list[Method]:
    """PHS, crop and mask, the knobs beyond the paper, and averages of scales."""
    roi = Focused(Focus("all"))
    return [
        WholeImage(),
        Focused(Focus.paper(default)),
        Focused(Focus(default), "blend"),  # the default of search
        Edited(CROP),
        Edited(MASK_MEAN),
        roi,
        Focused(Focus(default)),
        Focused(Focus(default, zoom=1.25)),
        Focused(Focus(default, zoom=2)),
        Average([Edited(CROP), roi]),
        Focused(Focus(default, zoom=(0.0, 2.0))),
        Focused(Focus(default, zoom=(0.0, 1.25, 2.0))),
    ]


def run(study: Study) -> list[Section]:
    """One table and plot for each way of missing, and which focus is best over clean and bad prompts together."""
    conditions: dict[str, tuple[Draw, float]] = {
        "clean boxes": (shifted, 0.0),
        "corners shifted by 0.3": (shifted, 0.3),
        "clicks": (_displaced, 0.0),
    }
    drawn = {
        name: study.bench.queries(study.queries, jittered(study, draw, level))
        for name, (draw, level) in conditions.items()
    }
    return [
        choose(study, drawn),
        _sweep(study, "box corners shifted", "Gaussian shift of each side, in box sizes", _CORNERS, shifted),
        _sweep(study, "boxes rescaled", "Gaussian of the log of each side's scale", _SCALES, _rescaled),
        _sweep(study, "points displaced", "Gaussian displacement, in box sizes", _POINTS, _displaced),
        _sweep(study, "outlines eroded and dilated", "radius in square roots of the area", _SHARES, _resized),
    ]


def jittered(study: Study, draw: Draw, level: float) -> Callable[[ObjectQuery, int, int], Prompt]:
    """A prompt function for `Bench.queries`; the draw depends on the seed and the query, not on the level."""
    numbers = {id(query): number for number, query in enumerate(study.queries)}

    def prompt(query: ObjectQuery, width: int, height: int) -> Prompt:
        return draw(query, width, height, level, np.random.default_rng([study.seed, numbers[id(query)]]))

    return prompt


def _sweep(study: Study, heading: str, axis: str, levels: Sequence[float], draw: Draw) -> Section:
    chosen = methods(study.bench.info.default_heads)
    rows: list[dict] = [{"method": method.name} for method in chosen]
    lines: dict[str, list[tuple[float, float, float]]] = {method.name: [] for method in chosen}
    for level in levels:
        queries = study.bench.queries(study.queries, jittered(study, draw, level))
        for row, outcome in zip(rows, study.measure(chosen, queries), strict=True):
            difference = paired(outcome, study.base, study.metric, seed=study.seed)
            row[f"{level:g}"] = outcome.mean(study.metric)
            row[f"{level:g} difference ± SE"] = f"{difference.mean:+.3f} ± {difference.error:.3f}"
            lines[outcome.method].append((level, outcome.mean(study.metric), difference.error))
    note = f"{study.metric} by the {axis}; the difference is paired, to whole-image search."
    return Section(f"{study.model}: {heading}", note, rows, Plot(axis, study.metric, lines=lines))


def shifted(query: ObjectQuery, width: int, height: int, level: float, rng: np.random.Generator) -> Prompt:
    return box_of(perturb.shifted_corners(query.instance.box, level, width, height, rng))


def _rescaled(query: ObjectQuery, width: int, height: int, level: float, rng: np.random.Generator) -> Prompt:
    return box_of(perturb.rescaled(query.instance.box, level, width, height, rng))


def _displaced(query: ObjectQuery, width: int, height: int, level: float, rng: np.random.Generator) -> Prompt:
    centre = centre_of(query.instance, width, height)
    return Point(*perturb.displaced(centre, query.instance.box, level, width, height, rng))


def _resized(query: ObjectQuery, width: int, height: int, level: float, rng: np.random.Generator) -> Prompt:
    """The outline where there is one that can be drawn, else the box."""
    outline = outline_of(query.instance, width, height)
    if outline is None:
        outline = to_array(box_of(query.instance.box), width, height)
    return Mask(perturb.resized_mask(outline, level))
