"""Masks that people paint or export as pictures -> bool: hard and soft ones, labels, layers with transparency.

What is certain is converted; what may mean two things is refused, with a line that says how to make it certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from phs_milvus.contract.errors import PromptError

BoolArray = npt.NDArray[np.bool_]

# More values than these are no labels: soft edges have most of 256.
_MOST_LABELS = 32
_COLOURS_COUNTED = 4096


def inside_of_picture(image: Image.Image) -> BoolArray:
    """bool [H, W] of a loaded, upright image: neither black nor transparent, soft edges cut in their middle.

    Colours count, not palette indices: index 0 may well be white.

    Raises:
        PromptError: float pixels, or grey values that may mean more than one thing.
    """
    if image.mode == "F":
        raise PromptError("mask: float pixels; threshold scores first, for example scores > 0.5")
    if image.has_transparency_data:
        return _not_turned_around(_of_layer(np.asarray(image.convert("RGBA"))))
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return _not_turned_around(inside_of_greys(np.asarray(image)))
    return _not_turned_around(_of_colours(np.asarray(image.convert("RGB"))))


def inside_of_greys(values: npt.NDArray[Any]) -> BoolArray:
    """bool, as `values`, which are bool or integers: nonzero is inside, but of soft masks the upper half.

    Masks of two values, and of few small ones (0 and 1, instance numbers), are hard. Others are soft where they reach
    the upper half of 8 or 16 bits: inside from 128 or 32,768 on.

    Raises:
        PromptError: many values that all lie in the lower half, or labels with 255 for "unknown".
    """
    if values.dtype == np.bool_:
        return values
    if not values.size or values.min() < 0 or values.max() > 65535:
        return np.asarray(values != 0)  # numbers of things; no picture has such values
    found = np.flatnonzero(np.bincount(values.reshape(-1).astype(np.uint16), minlength=1))
    if len(found) <= 2 and found[0] == 0:
        return np.asarray(values != 0)
    highest = int(found[-1])
    half = 128 if highest <= 255 else 32768
    few = len(found) <= _MOST_LABELS
    if few and (highest < half or half > 128):
        return np.asarray(values != 0)
    if highest < half:
        raise PromptError(
            f"mask: {len(found)} grey values up to {highest}: soft, or labels? threshold it first, for example "
            f"mask > {highest // 2}"
        )
    low, top = (values > 0) & (values < half), values == 255
    if few and half == 128 and not ((values >= half) & ~top).any() and low.sum() > top.sum():
        labels = ", ".join(str(value) for value in found[1:9])
        raise PromptError(f"mask: values {labels} look like labels; say which one you mean, for example mask == 1")
    return np.asarray(values >= half)


def _of_colours(pixels: npt.NDArray[np.uint8]) -> BoolArray:
    """Of RGB [H, W, 3]."""
    brightest = pixels.max(axis=2)
    if (pixels == brightest[..., None]).all():
        return inside_of_greys(brightest)
    colours = Image.fromarray(pixels).getcolors(_COLOURS_COUNTED)
    if colours is not None and len(colours) <= _MOST_LABELS:
        return np.asarray(brightest > 0)  # each thing in its own colour
    return np.asarray(brightest >= 128)


def _of_layer(pixels: npt.NDArray[np.uint8]) -> BoolArray:
    """Of RGBA [H, W, 4]: what is opaque and not black; of black strokes on a transparent layer, the strokes."""
    alpha = pixels[..., 3]
    opaque = alpha >= max(1, (int(alpha.max()) + 1) // 2)
    colours = np.where(opaque[..., None], pixels[..., :3], 0)
    if not colours.any() and not opaque.all():
        return opaque & bool(alpha.any())
    return _of_colours(colours)


def _not_turned_around(inside: BoolArray) -> BoolArray:
    """Refuses strokes that are black on white: white is inside, and nobody points at all but a spot in the middle."""
    border = inside[0].all() and inside[-1].all() and inside[:, 0].all() and inside[:, -1].all()
    if border and not inside.all():
        raise PromptError(
            "mask: black on white? white is inside, and here it is the whole border; invert the mask, or give it as a "
            "bool array if it is meant so"
        )
    return inside
