"""Boxes around what stands out in a map over the patches."""

from __future__ import annotations

import math

import numpy as np

from phs_milvus.contract.grid import blobs
from phs_milvus.contract.location import LocatedBox
from phs_milvus.contract.types import Float32Array

# Boxes end between patches' centres, not only at their edges: the map is drawn so many times finer.
_FINER = 4
# Further boxes score at most this share of the best one's score less: what scores less is hardly ever the thing.
_NEAR = 0.1
# Where between the smallest and the largest value of a map its boxes end; measured (benchmarks/quality).
THRESHOLD = 0.54


def boxes(extent: Float32Array, width: int, height: int, limit: int, threshold: float | None) -> tuple[LocatedBox, ...]:
    """The bounding boxes of all blobs of at least a patch's size, best first; the first holds the map's maximum.

    Args:
        extent: float32 [grid_height, grid_width].
        width, height: of the upright image, which the grid spans, in pixels.
        limit: boxes at most.
        threshold: in (0, 1), see `THRESHOLD`, which None stands for.

    Returns:
        whole pixels, outwards; each box's score is the map's largest value in it.
    """
    extent = finer(extent)
    low, high = float(extent.min()), float(extent.max())
    level = low + (THRESHOLD if threshold is None else threshold) * (high - low)
    rows, columns = extent.shape
    found = []
    for blob in blobs(extent >= level):
        y, x = np.array(blob).T
        if len(blob) < _FINER**2 and extent[y, x].max() < high:
            continue  # less than a patch: noise between centres
        region = (
            math.floor(x.min() * width / columns),
            math.floor(y.min() * height / rows),
            math.ceil((x.max() + 1) * width / columns),
            math.ceil((y.max() + 1) * height / rows),
        )
        found.append(LocatedBox(region, float(extent[y, x].max())))
    found.sort(key=lambda box: -box.score)
    least = found[0].score - _NEAR * abs(found[0].score)
    return tuple(box for box in found[:limit] if box.score >= least)


def finer(grid: Float32Array) -> Float32Array:
    """A grid of values at its cells' centres, linearly in between: float32 [4 * height, 4 * width]."""
    height, width = (_between(size) for size in grid.shape)
    fine: Float32Array = (height @ grid @ width.T).astype(np.float32, copy=False)
    return fine


def _between(size: int) -> Float32Array:
    """float32 [4 * size, size]: what each of `size` values weighs at each of the finer places."""
    places = np.clip((np.arange(_FINER * size) + 0.5) / _FINER - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))).astype(np.float32)
