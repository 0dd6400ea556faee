"""Shapes -> pixels: the geometry behind prompts.py.

Every function paints into a bool canvas [height, width], clips to it, and returns whether it touched a pixel.
Pixel (column i, row j) covers [i, i+1) x [j, j+1); its centre is (i+0.5, j+0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Corner = tuple[float, float]

# Larger than any image; coordinates are clipped to it, so that their products stay finite.
_FAR = 1e100


def paint_box(canvas: BoolArray, x0: float, y0: float, x1: float, y1: float) -> bool:
    """Sets every pixel that the rectangle overlaps, even in part; coordinates in pixels."""
    window = canvas[_rows_and_columns(canvas, x0, y0, x1, y1)]
    window[...] = True
    return window.size > 0


def paint_disc(canvas: BoolArray, x: float, y: float, radius: float, value: bool) -> bool:
    """Sets the pixels whose centres lie within the radius, and the pixel that holds (x, y), to `value`."""
    height, width = canvas.shape
    x, y, radius = (min(max(v, -_FAR), _FAR) for v in (x, y, radius))
    top, bottom = _ceil(y - radius - 0.5, height), _floor(y + radius + 0.5, height)
    dy = np.arange(top, bottom) + 0.5 - y
    half = np.sqrt(np.maximum((radius - dy) * (radius + dy), 0.0))
    starts = np.ceil(np.clip(x - half - 0.5, 0, width)).astype(np.intp)
    stops = np.floor(np.clip(x + half + 0.5, 0, width)).astype(np.intp)
    for row, start, stop in zip(range(top, bottom), starts.tolist(), stops.tolist(), strict=True):
        canvas[row, start:stop] = value
    if 0 <= x < width and 0 <= y < height:
        canvas[int(y), int(x)] = value
        return True
    return bool((stops > starts).any())


def paint_polygon(canvas: BoolArray, corners: Sequence[Corner]) -> bool:
    """Sets the pixels whose centres lie inside by the even-odd rule; if there are none, those on the outline.

    Pillow's ImageDraw includes the outline, which makes every shape half a pixel larger. Here, in every row whose
    centre line an edge crosses, the edge toggles `flips` at the first pixel centre to its right; the running parity of
    the flips along a row is then the even-odd rule.
    """
    height, width = canvas.shape
    array = np.clip(np.asarray(corners, dtype=np.float64), -_FAR, _FAR)
    low, high = array.min(axis=0), array.max(axis=0)
    # A polygon that only touches the border from outside is outside, as a box is.
    if (low >= (width, height)).any() or ((high <= 0) & (low < 0)).any():
        return False
    rows, columns = _rows_and_columns(canvas, *low.tolist(), *high.tolist())
    flips = np.zeros((rows.stop - rows.start, columns.stop - columns.start + 1), dtype=np.bool_)
    edges = list(zip(array.tolist(), np.roll(array, -1, axis=0).tolist(), strict=True))
    for (xa, ya), (xb, yb) in edges:
        row = np.arange(_ceil(min(ya, yb) - 0.5, height), _ceil(max(ya, yb) - 0.5, height))
        if row.size:
            crossing = xa + (row + 0.5 - ya) / (yb - ya) * (xb - xa)
            column = np.ceil(np.clip(crossing - 0.5, columns.start, columns.stop)).astype(np.intp)
            flips[row - rows.start, column - columns.start] ^= True
    inside = np.logical_xor.accumulate(flips, axis=1)[:, :-1]
    if inside.any():
        canvas[rows, columns] |= inside
        return True
    return sum(_paint_segment(canvas, *a, *b) for a, b in edges) > 0


def _paint_segment(canvas: BoolArray, xa: float, ya: float, xb: float, yb: float) -> bool:
    """Sets the pixels that the segment from (xa, ya) to (xb, yb) passes through."""
    height, width = canvas.shape
    enter, leave = 0.0, 1.0  # the part of the segment, as a share of its length, that lies within the canvas
    for start, step, limit in ((xa, xb - xa, width), (ya, yb - ya, height)):
        if step:
            near, far = sorted((-start / step, (limit - start) / step))
            enter, leave = max(enter, near), min(leave, far)
        elif not 0 <= start < limit:
            return False
    if enter >= leave:
        return False
    x, y = (np.clip(a + np.array([enter, leave]) * (b - a), 0, n) for a, b, n in ((xa, xb, width), (ya, yb, height)))
    # Cut the segment where it crosses pixel borders; each piece then lies in one pixel, the one at its middle.
    cuts = [np.array([0.0, 1.0])]
    for first, last in (x.tolist(), y.tolist()):
        if first != last:
            borders = np.arange(math.ceil(min(first, last)), math.floor(max(first, last)) + 1)
            cuts.append((borders - first) / (last - first))
    share = np.unique(np.concatenate(cuts))
    middle = (share[1:] + share[:-1]) / 2
    column = np.minimum(x[0] + middle * (x[1] - x[0]), width - 1).astype(np.intp)
    row = np.minimum(y[0] + middle * (y[1] - y[0]), height - 1).astype(np.intp)
    canvas[row, column] = True
    return True


def _rows_and_columns(canvas: BoolArray, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
    """The pixels that a rectangle overlaps."""
    height, width = canvas.shape
    return slice(_floor(y0, height), _ceil(y1, height)), slice(_floor(x0, width), _ceil(x1, width))


def _floor(value: float, limit: int) -> int:
    return math.floor(min(max(value, 0.0), float(limit)))


def _ceil(value: float, limit: int) -> int:
    return math.ceil(min(max(value, 0.0), float(limit)))
