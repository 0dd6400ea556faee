"""How people miss: jittered boxes, displaced points, outlines too small or too large. Seeded, one draw per query."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phs_milvus.evaluation.datasets.model import Corners

BoolArray = npt.NDArray[np.bool_]


def shifted_corners(box: Corners, spread: float, width: int, height: int, rng: np.random.Generator) -> Corners:
    """Every side moved by a Gaussian of `spread` box sizes; at least one pixel, inside the image."""
    x0, y0, x1, y1 = box
    moves = rng.normal(0.0, 1.0, 4) * spread
    sides = (x1 - x0, y1 - y0)
    moved = [value + move * sides[index % 2] for index, (value, move) in enumerate(zip(box, moves, strict=True))]
    return _inside((moved[0], moved[1], moved[2], moved[3]), width, height)


def rescaled(box: Corners, spread: float, width: int, height: int, rng: np.random.Generator) -> Corners:
    """Width and height each multiplied by exp(a Gaussian of `spread`) about the centre, inside the image."""
    x0, y0, x1, y1 = box
    factor_x, factor_y = np.exp(rng.normal(0.0, 1.0, 2) * spread)
    cx, cy, half_x, half_y = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 * factor_x, (y1 - y0) / 2 * factor_y
    return _inside((cx - half_x, cy - half_y, cx + half_x, cy + half_y), width, height)


def displaced(
    point: tuple[float, float], box: Corners, spread: float, width: int, height: int, rng: np.random.Generator
) -> tuple[float, float]:
    """A point moved by a Gaussian of `spread` box sizes, inside the image."""
    dx, dy = rng.normal(0.0, 1.0, 2) * spread
    x, y = point[0] + dx * (box[2] - box[0]), point[1] + dy * (box[3] - box[1])
    return float(np.clip(x, 0, width - 0.5)), float(np.clip(y, 0, height - 0.5))


def resized_mask(mask: BoolArray, share: float) -> BoolArray:
    """Dilated (share above 0) or eroded (below 0) by |share| * sqrt(area) pixels, with a square.

    An erosion that would leave nothing is halved until something is left.
    """
    radius = round(abs(share) * float(np.sqrt(mask.sum())))
    if not radius:
        return mask
    if share > 0:
        return _dilated(mask, radius)
    eroded = ~_dilated(~mask, radius)
    return eroded if eroded.any() else resized_mask(mask, share / 2)


def _dilated(mask: BoolArray, radius: int) -> BoolArray:
    for axis in (0, 1):
        total = np.cumsum(mask, axis=axis)
        size = mask.shape[axis]
        last = np.take(total, np.minimum(np.arange(size) + radius, size - 1), axis=axis)
        first = np.arange(size) - radius - 1
        before = np.take(total, np.maximum(first, 0), axis=axis) * np.expand_dims(first >= 0, 1 - axis)
        mask = last > before
    return mask


def _inside(box: Corners, width: int, height: int) -> Corners:
    x0, x1 = _span(box[0], box[2], width)
    y0, y1 = _span(box[1], box[3], height)
    return x0, y0, x1, y1


def _span(a: float, b: float, limit: int) -> tuple[float, float]:
    """Sides that crossed are swapped."""
    low, high = min(max(min(a, b), 0.0), limit - 1.0), min(max(max(a, b), 1.0), float(limit))
    return low, max(high, low + 1)
