"""Choosing search settings for your images: cross-validated quality against query latency.

Each fold's queries are answered with the settings that are best on the other folds, so that the quality reported is
that of choosing, not of the luckiest row. The settings recommended are the cheapest whose quality is within one
standard error of the best (the one-standard-error rule of Breiman et al., 1984).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phs_milvus.contract.errors import InvalidInput, reason_of, shown
from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.experiments.overhead import query_milliseconds
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, folds, paired, standard_error
from phs_milvus.evaluation.methods import Focused, TwoStage
from phs_milvus.search.settings import SearchSettings
from phs_milvus.search.zooms import stages

# Crops (1 is the prompt's own box), and averages of scales.
_ZOOMS: tuple[float | tuple[float, ...], ...] = (0.0, 1.0, 1.25, 2.0, (0.0, 1.25), (0.0, 2.0), (0.0, 1.25, 2.0))
_ROIS = (0.0, 0.5, 1.0)
_CANDIDATES = (100, 200, 500, 1000)
# What FocusedSearch never goes below by itself.
_FEWEST_CANDIDATES = 200

Cost = tuple[tuple[float, ...], int]


@dataclass(frozen=True, eq=False)
class Choice:
    """What tuning found.

    Attributes:
        setting: recommended: a focus, and the score to rank by.
        candidates: the smallest K that is enough on this sample, or the largest tried where none is; None, search's own
            default, where that is less than what search takes by itself: a sample of a few hundred images says
            nothing for shallow K in a large collection.
        quality, error: `Study.metric`, cross-validated, of choosing by quality alone; and its standard error.
        gain: its paired difference to whole-image search, as text.
        rows: the trade-off: every setting measured, best first.
        candidate_rows: two-stage quality of the recommended setting at each K.
    """

    setting: Focused
    candidates: int | None
    quality: float
    error: float
    gain: str
    rows: list[dict[str, Any]]
    candidate_rows: list[dict[str, Any]]

    def settings(self, study: Study) -> SearchSettings:
        """What `phs-milvus search --settings` reads."""
        measured = {study.metric: self.quality, "standard error": self.error, "gain over whole image": self.gain}
        fingerprint = study.bench.info.fingerprint
        return SearchSettings(self.setting.focus, self.candidates, fingerprint, measured, self.setting.score)


def grid(heads: int) -> list[Focused]:
    """Every setting tried on a model with H heads.

    At each zoom and roi: every head, and of each smaller number Query-Only, Query-DB, and their blend with the same
    heads in stage one or with every head there. In an order in which neighbours share what must be scored.
    """
    counts = sorted({1, max(1, heads // 3), max(1, heads // 2), max(1, 2 * heads // 3)} - {heads})
    settings = [Focused(Focus("all", attention_shift=roi, zoom=zoom), "ann") for roi in _ROIS for zoom in _ZOOMS]
    for roi in _ROIS:
        for count in counts:
            for zoom in _ZOOMS:
                same = Focus(count, attention_shift=roi, zoom=zoom, ann_heads=None)
                settings += [Focused(same, "ann"), Focused(same, "query_db"), Focused(same, "blend")]
                settings.append(Focused(Focus(count, attention_shift=roi, zoom=zoom), "blend"))
    return settings


def tune(study: Study, settings: Sequence[Focused] | None = None) -> Choice:
    """Measures every setting on the study's queries, chooses, and then finds how many candidates it needs.

    Raises:
        InvalidInput: fewer than two images with queries, which cannot be split.
    """
    settings = grid(study.heads) if settings is None else list(settings)
    if len(set(study.pointed.images.tolist())) < 2:
        raise InvalidInput("tuning needs queries on at least two images", "dataset")
    outcomes = study.measure(settings)
    chosen = cross_validated(outcomes, study.metric, seed=study.seed)
    held_out = Outcome("chosen", {study.metric: chosen}, study.pointed.labels, study.pointed.images)
    latency = _latencies(study, settings)
    recommended = settings[recommend(outcomes, [latency[_cost(setting)] for setting in settings], study.metric)]
    candidate_rows, candidates = _candidates(study, recommended)
    rows: list[dict[str, Any]] = [
        {
            "setting": setting.name,
            study.metric: outcome.mean(study.metric),
            "difference ± SE [95%]": str(paired(outcome, study.base, study.metric, seed=study.seed)),
            "query ms": latency[_cost(setting)],
            "recommended": "yes" if setting is recommended else "",
        }
        for setting, outcome in zip(settings, outcomes, strict=True)
    ]
    rows.sort(key=lambda row: -row[study.metric])
    gain = str(paired(held_out, study.base, study.metric, seed=study.seed))
    return Choice(recommended, candidates, float(chosen.mean()), standard_error(chosen), gain, rows, candidate_rows)


def cross_validated(outcomes: Sequence[Outcome], metric: str, *, seed: int = 0) -> np.ndarray:
    """float64 [Q]: each query's metric under the setting that is best on the other folds."""
    values = np.stack([outcome.values[metric] for outcome in outcomes])
    parts = folds(outcomes[0].images, seed=seed)
    held_out = np.empty(values.shape[1])
    for part in np.unique(parts):
        inside = parts == part
        held_out[inside] = values[values[:, ~inside].mean(axis=1).argmax(), inside]
    return held_out


def recommend(outcomes: Sequence[Outcome], costs: Sequence[float], metric: str) -> int:
    """The cheapest setting within one standard error of the paired difference to the best; of equal costs the best."""
    best = max(outcomes, key=lambda outcome: outcome.mean(metric))
    close = []
    for number, outcome in enumerate(outcomes):
        difference = paired(outcome, best, metric)
        if outcome is best or difference.mean + difference.error >= 0:
            close.append(number)
    return min(close, key=lambda number: (costs[number], -outcomes[number].mean(metric)))


def write(choice: Choice, study: Study, path: Path) -> None:
    """Writes the settings file.

    Raises:
        InvalidInput: it cannot be written.
    """
    text = json.dumps(asdict(choice.settings(study)), indent=2) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {shown(path)}: {reason_of(error)}", "out") from error


def _candidates(study: Study, setting: Focused) -> tuple[list[dict[str, Any]], int | None]:
    """Two-stage quality at each K, and the smallest K from which on it is within one standard error of scoring every
    image, or else the largest; None where that is less than search takes by itself."""
    exhaustive = study.measure([setting])[0]
    depths = [k for k in _CANDIDATES if k < len(study.bench.states)] or [len(study.bench.states)]
    rows: list[dict[str, Any]] = []
    enough = None
    two_stage = [TwoStage(setting.focus, depth, setting.score) for depth in depths]
    for depth, outcome in zip(depths, study.measure(two_stage), strict=True):
        difference = paired(outcome, exhaustive, study.metric, seed=study.seed)
        rows.append({"candidates K": depth, study.metric: outcome.mean(study.metric), "to exhaustive": str(difference)})
        if difference.mean < -difference.error:
            enough = None
        elif enough is None:
            enough = depth
    enough = enough or depths[-1]
    return rows, enough if enough >= _FEWEST_CANDIDATES else None


def _encoded_focus(setting: Focused) -> Focus:
    """What search encodes for a setting: only stage one's heads where it ranks by "ann"."""
    return setting.focus.stage_one if setting.score == "ann" else setting.focus


def _cost(setting: Focused) -> Cost:
    """What a query's latency depends on: the zooms, and whether the stages keep different heads at each."""
    focus = _encoded_focus(setting)
    return focus.zooms, len(stages(focus))


def _latencies(study: Study, settings: Sequence[Focused]) -> dict[Cost, float]:
    """Median milliseconds of encoding a query, for each cost."""
    one_of_each = {_cost(setting): setting for setting in settings}
    return {cost: query_milliseconds(study, _encoded_focus(setting))[0] for cost, setting in one_of_each.items()}
