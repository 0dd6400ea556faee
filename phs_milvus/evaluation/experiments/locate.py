"""Where in each hit the thing is: is the peak on it, is the best box around it, and does ranking by it find more?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.grid import blobs
from phs_milvus.contract.location import LocatedBox, Location
from phs_milvus.contract.types import Float32Array, Focus
from phs_milvus.evaluation.bench import QuerySet
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.measures import Outcome, paired, standard_error
from phs_milvus.evaluation.methods import Focused
from phs_milvus.evaluation.report import Section
from phs_milvus.pointing.prompts import Mask
from phs_milvus.search.locating import localized_score, target_of

# Hits that are looked at, and rows that the third stage looks into.
_HITS, _ROWS = 10, 20
# Of the picture: what smaller objects cover.
_SMALL = 0.25
_OVERLAP = 0.5
_OURS = "located (this product)"

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Found:
    """How well a map does in one hit: a chance is a share in [0, 1]."""

    query: int
    peak: float
    box: float
    small: bool


def run(study: Study) -> list[Section]:
    """One table of maps and one of the third stage."""
    bench, queries = study.bench, study.pointed
    blend = Focused(Focus(), "blend").scores(bench, queries)
    blend[np.arange(len(queries)), queries.images] = -np.inf
    found: dict[str, list[Found]] = defaultdict(list)
    third = np.full_like(blend, -np.inf)
    with tqdm(total=len(queries), desc="locating", unit="query", dynamic_ncols=True) as bar:
        for row in range(len(queries)):
            best = np.argsort(-blend[row], kind="stable")[:_ROWS]
            weights, locations, has_feature = _located(study, queries, row, best)
            for rank, (image, location) in enumerate(zip(best, locations, strict=True)):
                third[row, image] = localized_score(float(blend[row, image]), location, has_feature)
                boxes = _boxes_of(study, int(image), queries.labels[row])
                if rank < _HITS and boxes:
                    for name, result in _judged(study, row, int(image), location, weights, boxes).items():
                        found[name].append(result)
            bar.update()
    return [_maps(study, found), _third_stage(study, blend, third)]


def _located(
    study: Study, queries: QuerySet, row: int, images: npt.NDArray[np.int64]
) -> tuple[Float32Array, list[Location], bool]:
    """(the query's head weights, where its thing is in each image, whether regions were compared)."""
    files = study.bench.dataset.images
    encoder, query = study.bench.encoder, files[int(queries.images[row])].path
    target = target_of(encoder, query, Mask(queries.masks[row]), Focus())
    locations = []
    for image, location in zip(
        images, encoder.locate(target, [files[int(index)].path for index in images]), strict=True
    ):
        if isinstance(location, PhsError):
            raise type(location)(f"{files[int(image)].path}: {location}") from location
        locations.append(location)
    return target.head_weights, locations, target.region_feature is not None


def _judged(
    study: Study, row: int, image: int, location: Location, weights: Float32Array, boxes: Sequence[Corners]
) -> dict[str, Found]:
    size = location.width, location.height
    covered = _covered(boxes, *size)
    small = covered < _SMALL
    grid = (study.bench.info.grid_height, study.bench.info.grid_width)
    attention = study.bench.attention[image]
    judged = {"chance": Found(row, covered, 0.0, small)}
    for name, values in (
        ("mean attention", attention.mean(axis=0)),
        ("attention of the query's heads", weights @ attention),
    ):
        peak, box = _of_map(values.reshape(grid), *size)
        judged[name] = Found(row, _inside(peak, boxes), _right(box, boxes), small)
    best: LocatedBox = location.boxes[0]
    judged[_OURS] = Found(row, _inside(location.peak, boxes), _right(best.region, boxes), small)
    return judged


def _of_map(values: Float32Array, width: int, height: int) -> tuple[tuple[float, float], Corners]:
    """A map's peak, and the box around the patches above half of its range that touch it."""
    rows, columns = values.shape
    row, column = divmod(int(values.argmax()), columns)
    inside = values >= (values.min() + values.max()) / 2
    y, x = np.array(next(blob for blob in blobs(inside) if (row, column) in blob)).T
    box = (x.min() * width / columns, y.min() * height / rows)
    end = ((x.max() + 1) * width / columns, (y.max() + 1) * height / rows)
    return ((column + 0.5) * width / columns, (row + 0.5) * height / rows), (*box, *end)


def _boxes_of(study: Study, image: int, label: str) -> list[Corners]:
    return [one.box for one in study.bench.dataset.images[image].instances if one.label == label]


def _covered(boxes: Sequence[Corners], width: int, height: int) -> float:
    """The share of the picture that boxes cover: how often a random peak is right."""
    inside = np.zeros((height, width), np.bool_)
    for x0, y0, x1, y1 in boxes:
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
    return float(inside.mean())


def _inside(peak: tuple[float, float], boxes: Sequence[Corners]) -> float:
    x, y = peak
    return float(any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes))


def _right(box: Corners, boxes: Sequence[Corners]) -> float:
    """Whether the overlap (intersection over union) with one of the boxes is large enough."""
    return float(any(overlap(box, other) > _OVERLAP for other in boxes))


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return width * height / (sum(areas) - width * height)


def _maps(study: Study, found: dict[str, list[Found]]) -> Section:
    rows: list[dict[str, Any]] = []
    for name, results in found.items():
        small = [result for result in results if result.small]
        rows.append(
            {
                "map": name,
                "hits": len(results),
                "peak on the thing": _mean([result.peak for result in results]),
                "its SE": _error(results, "peak"),
                "of small things": _mean([result.peak for result in small]),
                f"box IoU > {_OVERLAP:g}": _mean([result.box for result in results]),
                "box SE": _error(results, "box"),
            }
        )
    note = (
        f"Hits of the default search that hold an object of the query's class among the first {_HITS}, for "
        f"{len(study.pointed)} queries. The peak is right inside a box of that class, the best box where it overlaps "
        f"one by more than {_OVERLAP:g} (intersection over union). Small: all boxes of the class cover less than "
        f"{_SMALL:g} of the picture. Standard errors are over queries. Attention maps have their box around half of "
        "their range."
    )
    return Section(f"{study.model}: where the thing is", note, rows)


def _third_stage(study: Study, blend: Float32Array, third: Float32Array) -> Section:
    relevant = study.bench.relevant(study.pointed)
    outcomes = [
        Outcome(name, {"MP@10": _precision(scores, relevant)}, study.pointed.labels, study.pointed.images)
        for name, scores in (("blend", blend), (f"third stage on the best {_ROWS}", third))
    ]
    rows = []
    for outcome in outcomes:
        difference = paired(outcome, outcomes[0], "MP@10", seed=study.seed)
        rows.append(
            {
                "ranked by": outcome.method,
                "MP@10": outcome.mean("MP@10"),
                "to blend": difference.mean,
                "SE": difference.error,
                "95% low": difference.low,
                "95% high": difference.high,
            }
        )
    note = (
        f"{len(study.pointed)} queries; paired differences, their standard error over queries, bootstrap over images."
    )
    return Section(f"{study.model}: the third stage", note, rows)


def _precision(scores: Float32Array, relevant: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """float64 [Q]: the share of relevant images among the first ten."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :_HITS]
    precision: npt.NDArray[np.float64] = np.take_along_axis(relevant, best, axis=1).mean(axis=1)
    return precision


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _error(results: Sequence[Found], name: str) -> float:
    """Over queries, each of which has one value: the mean over its hits."""
    of_query: dict[int, list[float]] = defaultdict(list)
    for result in results:
        of_query[result.query].append(getattr(result, name))
    return standard_error([_mean(values) for values in of_query.values()])
