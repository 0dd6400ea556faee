"""Where a prompt makes the server look: the crop that zoom asks for, and the Gaussian of foveal attention.

Runs on decode threads, without torch. Pixels of the upright image throughout; regions are x0, y0, x1, y1, exclusive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.grid import shares_on_grid
from phs_milvus.contract.types import Float32Array, Focus, Region

# In patches, as published.
_FOVEA_SIGMA = 100.0


class GridPrompt(NamedTuple):
    """A prompt as the last layer sees it.

    mask: float32 [N] in [0, 1], on the patch grid; None without a prompt.
    heads_on: attention heads to keep; None: every head, none is selected.
    attention_shift: see `Focus`.
    fovea: float32 [N] to add to the [CLS] logits, or None.
    """

    mask: Float32Array | None
    heads_on: int | None
    attention_shift: float
    fovea: Float32Array | None


def whole_image() -> GridPrompt:
    """No prompt."""
    return GridPrompt(None, None, 0.0, None)


def focused(inside: npt.NDArray[np.bool_], focus: Focus, heads_on: int, grid: int) -> tuple[Region | None, GridPrompt]:
    """A mask, bool [height, width], as `focus` wants it seen.

    Returns:
        the crop to look at, None for the whole image; and the prompt on its patch grid.

    Raises:
        PromptError: nothing is set.
    """
    height, width = inside.shape
    box, zoom = bounding_box(inside), focus.single_zoom
    x0, y0, x1, y1 = region = zoom_region(box, zoom, width, height) if zoom else (0, 0, width, height)
    seen = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    prompt = GridPrompt(
        mask=shares_on_grid(inside[y0:y1, x0:x1], grid, grid),
        heads_on=heads_on,
        attention_shift=focus.attention_shift,
        fovea=focus.fovea * foveal_grid(seen, x1 - x0, y1 - y0, grid) if focus.fovea else None,
    )
    return region if zoom else None, prompt


def bounding_box(inside: npt.NDArray[np.bool_]) -> Region:
    """The smallest region that holds every set pixel of a bool [height, width] mask.

    Raises:
        PromptError: nothing is set.
    """
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        raise PromptError("selects no pixel", "mask")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def zoom_region(box: Region, zoom: float, width: int, height: int) -> Region:
    """The box with its sides multiplied by `zoom` about its centre, outwards to whole pixels, clipped to the image."""
    x0, x1 = _grown(box[0], box[2], zoom, width)
    y0, y1 = _grown(box[1], box[3], zoom, height)
    return x0, y0, x1, y1


def foveal_grid(box: Region, width: int, height: int, grid: int) -> Float32Array:
    """A Gaussian from the box's centre on the patch grid, min-max scaled to [0, 1]: float32 [grid * grid]."""
    centres = np.arange(grid) + 0.5
    dx = centres - (box[0] + box[2]) / 2 * grid / width
    dy = centres - (box[1] + box[3]) / 2 * grid / height
    values = np.exp(-(dy[:, None] ** 2 + dx**2) / (2 * _FOVEA_SIGMA**2))
    spread = float(np.ptp(values))
    return ((values - values.min()) / (spread or 1.0)).astype(np.float32).reshape(-1)


def _grown(low: int, high: int, zoom: float, limit: int) -> tuple[int, int]:
    centre, half = (low + high) / 2, min(zoom * (high - low) / 2, 2.0 * limit)
    return max(0, math.floor(centre - half)), min(limit, math.ceil(centre + half))
