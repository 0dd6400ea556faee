"""Pointing by editing pixels: crop, mask, blur, a red circle. The baselines that need no access to the model.

Every edit takes an upright RGB image [height, width, 3] of uint8 and a bool mask [height, width], and returns an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Pixels = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]

# ImageNet's mean colour, which the models subtract: it becomes 0.
_MEAN = (124, 116, 104)
_BLUR_SHARE = 0.05
_CIRCLE_SHARE = 0.012


@dataclass(frozen=True)
class Edit:
    """A named edit; the name is part of the cache key, so a changed edit needs a new name."""

    name: str
    apply: Callable[[Pixels, BoolArray], Pixels]


def crop(image: Pixels, mask: BoolArray) -> Pixels:
    """The mask's bounding box."""
    x0, y0, x1, y1 = bounds(mask)
    return image[y0:y1, x0:x1]


def fill_black(image: Pixels, mask: BoolArray) -> Pixels:
    """Black outside the mask."""
    return np.where(mask[..., None], image, np.uint8(0))


def fill_mean(image: Pixels, mask: BoolArray) -> Pixels:
    """ImageNet's mean colour outside the mask."""
    return np.where(mask[..., None], image, np.array(_MEAN, np.uint8))


def fill_image_mean(image: Pixels, mask: BoolArray) -> Pixels:
    """The image's own mean colour outside the mask."""
    return np.where(mask[..., None], image, image.reshape(-1, 3).mean(axis=0).round().astype(np.uint8))


def blur_outside(image: Pixels, mask: BoolArray) -> Pixels:
    """A Gaussian blur outside the mask, its radius 5% of the shorter side."""
    blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(_BLUR_SHARE * min(mask.shape)))
    return np.where(mask[..., None], image, np.asarray(blurred))


def red_circle(image: Pixels, mask: BoolArray) -> Pixels:
    """A red ellipse around the mask's bounding box (arXiv 2304.06712)."""
    x0, y0, x1, y1 = bounds(mask)
    picture = Image.fromarray(image)
    width = max(1, round(_CIRCLE_SHARE * min(mask.shape)))
    ImageDraw.Draw(picture).ellipse((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=(255, 0, 0), width=width)
    return np.asarray(picture)


def bounds(mask: BoolArray) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask with a pixel set, exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


CROP = Edit("crop", crop)
MASK_BLACK = Edit("mask, black", fill_black)
MASK_MEAN = Edit("mask, mean colour", fill_mean)
MASK_IMAGE_MEAN = Edit("mask, image mean", fill_image_mean)
BLUR = Edit("blur outside", blur_outside)
RED_CIRCLE = Edit("red circle", red_circle)
EDITS = (CROP, MASK_BLACK, MASK_MEAN, MASK_IMAGE_MEAN, BLUR, RED_CIRCLE)
