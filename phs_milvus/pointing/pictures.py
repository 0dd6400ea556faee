"""Masks that people paint or export as pictures -> bool: hard and soft masks, labels, layers with transparency.

A mask with one meaning is converted. A mask that may mean two things is refused, and the error says how to make it
unambiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from phs_milvus.contract.errors import PromptError

BoolArray = npt.NDArray[np.bool_]

# A mask with more values than this is soft, not one of labels: soft edges use most of the 256 values.
_MOST_LABELS = 32
_COLOURS_COUNTED = 4096


def inside_of_picture(image: Image.Image) -> BoolArray:
    """bool [H, W] of a loaded, upright image: pixels neither black nor transparent, with soft edges cut at half.

    Decided by colour, not by palette index: index 0 may be white.

    Raises:
        PromptError: the pixels are float, or their values may mean more than one thing.
    """
    if image.mode == "F":
        raise PromptError("mask: float pixels; threshold scores first, for example scores > 0.5")
    if image.has_transparency_data:
        return _not_turned_around(_of_layer(np.asarray(image.convert("RGBA"))))
    if image.mode in ("1", "L") or image.mode.startswith("I"):
        return _not_turned_around(inside_of_greys(np.asarray(image)))
    return _not_turned_around(_of_colours(np.asarray(image.convert("RGB"))))


def inside_of_greys(values: npt.NDArray[Any]) -> BoolArray:
    """bool of the shape of `values`, which are bool or integers.

    Masks of two values or of few small ones (0 and 1, instance numbers) are hard: nonzero is inside. Other masks that
    reach the upper half of 8 or 16 bits are soft: 128 or more, or 32,768 or more, is inside.

    Raises:
        PromptError: there are many values and all lie in the lower half, or labels among which 255 means "unknown".
    """
    if values.dtype == np.bool_:
        return values
    if not values.size or values.min() < 0 or values.max() > 65535:
        return np.asarray(values != 0)  # instance numbers; no picture has such values
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
    """bool [H, W] of RGB [H, W, 3]."""
    brightest = pixels.max(axis=2)
    if (pixels == brightest[..., None]).all():
        return inside_of_greys(brightest)
    colours = Image.fromarray(pixels).getcolors(_COLOURS_COUNTED)
    if colours is not None and len(colours) <= _MOST_LABELS:
        return np.asarray(brightest > 0)  # each thing in its own colour
    return np.asarray(brightest >= 128)


def _of_layer(pixels: npt.NDArray[np.uint8]) -> BoolArray:
    """bool [H, W] of RGBA [H, W, 4]: opaque and not black, or black strokes on a transparent layer."""
    alpha = pixels[..., 3]
    opaque = alpha >= max(1, (int(alpha.max()) + 1) // 2)
    colours = np.where(opaque[..., None], pixels[..., :3], 0)
    if not colours.any() and not opaque.all():
        return opaque & bool(alpha.any())
    return _of_colours(colours)


def _not_turned_around(inside: BoolArray) -> BoolArray:
    """Returns the mask, but refuses one whose whole border is inside: most likely black strokes on white."""
    border = inside[0].all() and inside[-1].all() and inside[:, 0].all() and inside[:, -1].all()
    if border and not inside.all():
        raise PromptError(
            "mask: black on white? white is inside, and here the whole border is white; invert the mask, or give it as "
            "a bool array if that is intended"
        )
    return inside
