"""Masks in any form -> bool [height, width]: arrays, PIL images, PNG files, run lengths, COCO run lengths."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
from PIL import Image

from phs_milvus.contract.errors import ImageError, PromptError
from phs_milvus.contract.headers import lossy_format
from phs_milvus.contract.images import decode_native, load_image, upright
from phs_milvus.contract.types import MaskRuns
from phs_milvus.pointing.pictures import BoolArray, inside_of_greys, inside_of_picture

MaskSource: TypeAlias = "npt.NDArray[Any] | Image.Image | str | os.PathLike[str] | MaskRuns | Mapping[str, Any]"


def read_mask(source: MaskSource, width: int, height: int) -> BoolArray:
    """Reads a mask that must have a given size; the size is checked before pixels or runs are expanded.

    Args:
        source: as `Mask.source`.
        width, height: pixels of the upright image.

    Returns:
        bool [height, width]; may be the source itself.

    Raises:
        PromptError: the mask has another size, its file is unreadable, its runs are malformed, or its pixels are
            neither bool nor integer.
    """
    if isinstance(source, Mapping):
        return _decode_rle(source, width, height)
    if isinstance(source, MaskRuns):
        _check_size(source.width, source.height, width, height)
        return source.to_array()
    try:
        if isinstance(source, str | os.PathLike):
            file = load_image(source)
            if lossy := lossy_format(file.data):
                raise PromptError(f"mask: {file.path} is a {lossy}, whose black is not exactly black; give a PNG")
            _check_size(file.width, file.height, width, height)
            return inside_of_picture(decode_native(file.data))
        if isinstance(source, Image.Image):
            source = upright(source)
            _check_size(*source.size, width, height)
            return inside_of_picture(source)
    except ImageError as error:
        raise PromptError(f"mask: {error}") from error
    if source.ndim != 2 or source.dtype.kind not in "bui":
        raise PromptError(
            f"mask: expected a bool or integer array [H, W], nonzero is inside, got {source.dtype} "
            f"{list(source.shape)}; threshold scores first, for example scores > 0.5"
        )
    _check_size(source.shape[1], source.shape[0], width, height)
    return inside_of_greys(source)


def _check_size(mask_width: int, mask_height: int, width: int, height: int) -> None:
    if (mask_width, mask_height) != (width, height):
        raise PromptError(
            f"mask is {mask_width}x{mask_height}, but the image is {width}x{height}; a mask has the size of "
            "the upright image (after EXIF rotation)"
        )


# --- COCO run lengths ---------------------------------------------------------------------------------------


def _decode_rle(rle: Mapping[str, Any], width: int, height: int) -> BoolArray:
    """Decodes a COCO RLE of a given size.

    Args:
        rle: {"size": [height, width], "counts": ...}: runs in column-major order, zeros first, as a list of
            integers or in COCO's compressed text (str or bytes).
        width, height: the size that the mask must have.

    Returns:
        bool [height, width].

    Raises:
        PromptError: the size is another one, or the counts are malformed or do not sum to it. Raised before anything
            of that size is allocated.
    """
    size, counts = rle.get("size"), rle.get("counts")
    form = '{"size": [height, width], "counts": list of integers, str or bytes}'
    if not _integers(size) or len(size) != 2:
        raise PromptError(f"mask: a COCO RLE is {form}; its size is not")
    _check_size(size[1], size[0], width, height)
    if isinstance(counts, str | bytes):
        runs = _expand(map(ord, counts) if isinstance(counts, str) else counts)
    elif _integers(counts):
        runs = [int(run) for run in counts]
    else:
        raise PromptError(f"mask: a COCO RLE is {form}; its counts are not")
    total = width * height
    if min(runs, default=0) < 0 or sum(runs) != total:
        raise PromptError(
            f"mask: RLE counts must be 0 or more and sum to {width}x{height} = {total}; "
            f"the smallest is {min(runs, default=0)}, the sum {sum(runs)}"
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, np.asarray(runs, dtype=np.int64)).reshape(width, height).T


def _integers(value: object) -> TypeGuard[Sequence[int]]:
    # Within 64 bits, so that errors can show them: Python refuses to print integers of more than 4,300 digits.
    return isinstance(value, list | tuple | np.ndarray) and all(
        isinstance(n, int | np.integer) and abs(int(n)) < 2**63 for n in value
    )


def _expand(codes: Iterable[int]) -> list[int]:
    """COCO's compressed counts -> runs.

    Each number is signed LEB128 with 5 bits per character, offset by 48 (bit 5: more characters follow; bit 4 of the
    last one: the sign). From the fourth number on, each is a difference to the number two places before it.
    """
    runs: list[int] = []
    value = shift = 0
    for position, code in enumerate(codes):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 35:
            raise PromptError(f"mask: RLE counts are not COCO's compressed form at character {position}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise PromptError("mask: RLE counts end in the middle of a number")
    return runs
