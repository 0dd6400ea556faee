"""How deep stage one must look: two-stage search through Milvus at K candidates against scoring every image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from phs_milvus.contract.types import Float32Array, Focus
from phs_milvus.evaluation.bench import QuerySet
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import DEPTH, blocks, rank_metrics, standard_error
from phs_milvus.evaluation.methods import Focused, TwoStage
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.report import Section

_CANDIDATES = (100, 150, 200, 300, 500)


def run(study: Study) -> list[Section]:
    """PHS as published, with roi at two scales, and the default."""
    default = study.bench.info.default_heads
    methods = (
        Focused(Focus.paper(default)),
        Focused(Focus(default, zoom=(0.0, 2.0), ann_heads=None)),
        Focused(Focus(default), "blend"),
    )
    rows, lines = [], {}
    count = len(study.bench.states)
    depths = [depth for depth in _CANDIDATES if depth < count] or [count]
    for method in methods:
        points, name = [], method.name
        for depth, recalls, values, difference in _measure(study, method, depths):
            points.append((float(depth), float(recalls.mean()), standard_error(recalls)))
            rows.append(
                {
                    "method": name,
                    "candidates K": depth,
                    f"recall of exhaustive top {DEPTH}": float(recalls.mean()),
                    "SE": standard_error(recalls),
                    "worst query": float(recalls.min()),
                    study.metric: float(values.mean()),
                    "difference to exhaustive": float(difference.mean()),
                    "its SE": standard_error(difference),
                }
            )
        lines[name] = points
    note = (
        f"{len(study.bench.states)} images in a real Milvus collection. Recall: the share of the exhaustive "
        f"top {DEPTH} by the same score that two-stage search has in its own top {DEPTH}."
    )
    plot = Plot("candidates K", f"recall of the exhaustive top {DEPTH}", lines=lines)
    return [Section(f"{study.model}: candidates", note, rows, plot)]


def _measure(
    study: Study, method: Focused, depths: Sequence[int]
) -> list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Each depth's overlap with the exhaustive ranking, metric, and the metric's difference to it; float64 [Q] each."""
    parts: dict[int, list[np.ndarray]] = {depth: [] for depth in depths}
    with tqdm(total=len(study.pointed), desc=method.name, unit="query", dynamic_ncols=True, leave=False) as bar:
        for block in blocks(study.pointed):
            reference = method.scores(study.bench, block)
            exhaustive = _values(study, block, reference)
            for depth in depths:
                scores = TwoStage(method.focus, depth, method.score).scores(study.bench, block)
                values = _values(study, block, scores)
                parts[depth].append(np.stack([overlap(block, scores, reference), values, values - exhaustive]))
            bar.update(len(block))
    return [(depth, *np.concatenate(found, axis=1)) for depth, found in parts.items()]


def _values(study: Study, queries: QuerySet, scores: Float32Array) -> np.ndarray:
    """float64 [Q]: the study's metric."""
    return rank_metrics(scores, study.bench.relevant(queries), queries.images)[study.metric]


def overlap(queries: QuerySet, scores: Float32Array, reference: Float32Array) -> np.ndarray:
    """float64 [Q]: the share of the reference's first DEPTH images that are among the first DEPTH of `scores`."""
    found, wanted = (_top(queries, matrix) for matrix in (scores, reference))
    return np.array([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, wanted, strict=True)])


def _top(queries: QuerySet, scores: Float32Array) -> np.ndarray:
    """int64 [Q, DEPTH]; the query's own image is not among them."""
    ranked = scores.copy()
    ranked[np.arange(len(queries)), queries.images] = -np.inf
    return np.argsort(-ranked, axis=1, kind="stable")[:, :DEPTH]
