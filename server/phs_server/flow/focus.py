"""Where a prompt makes the server look: the crop that zoom asks for, and the Gaussian of foveal attention.

Runs on decode threads, without torch. Pixels of the upright image throughout; regions are x0, y0, x1, y1, exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.grid import shares_on_grid
from phs_milvus.contract.types import Float32Array, Focus, MaskRuns, Region
from phs_server.flow.preprocess import Decode, Prepared, checked_header, expanded
from phs_server.model.batch import PromptBatch

# In patches, as published.
_FOVEA_SIGMA = 100.0


def prepare_focused(data: bytes, mask: MaskRuns, focus: Focus, heads_on: int, *, grid: int, decode: Decode) -> Prepared:
    """An image and its mask as `focus` wants them seen.

    Raises:
        ImageError: over a limit, which is checked before anything is decoded, or not decodable.
        PromptError: another size than the image, runs that do not fit, or nothing set.
        ExpensivePicture: see `Decode`.
    """
    header = checked_header(data, decode.limits)
    width, height = header.upright_size
    decode.check(header)  # before a mask of that size is expanded
    inside = expanded(mask, width, height)
    box, zoom = bounding_box(inside), focus.single_zoom
    x0, y0, x1, y1 = region = zoom_region(box, zoom, width, height) if zoom else (0, 0, width, height)
    seen = (box[0] - x0, box[1] - y0, box[2] - x0, box[3] - y0)
    return Prepared(
        # Without zoom the pixels are those of the same image without a prompt.
        pixels=decode(header, region if zoom else None),
        width=width,
        height=height,
        region=region,
        mask=shares_on_grid(inside[y0:y1, x0:x1], grid, grid),
        heads_on=heads_on,
        attention_shift=focus.attention_shift,
        fovea=focus.fovea * foveal_grid(seen, x1 - x0, y1 - y0, grid) if focus.fovea else None,
    )


def prompts_of(items: Sequence[Prepared], heads: int, patches: int) -> PromptBatch[np.ndarray]:
    """The prompts of a batch, for a model of so many heads and patches."""
    nothing = np.zeros(patches, np.float32)
    shifts = np.array([item.attention_shift for item in items], np.float32)
    foveas = [item.fovea for item in items]
    has_fovea = any(each is not None for each in foveas)
    return PromptBatch(
        masks=np.stack([nothing if item.mask is None else item.mask for item in items]),
        head_counts=np.array([item.heads_on or heads for item in items], np.int64),
        attention_shift=shifts if shifts.any() else None,
        fovea=np.stack([nothing if each is None else each for each in foveas]) if has_fovea else None,
    )


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
