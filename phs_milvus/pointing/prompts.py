"""Prompts: points, boxes, polygons, masks and unions of them -> one mask over the image.

Coordinates are pixels of the upright image (after EXIF rotation), origin at the top-left corner of the
top-left pixel, x to the right, y down. Pixel (column i, row j) covers [i, i+1) x [j, j+1). Parts outside the
image are clipped; a prompt entirely outside is an error.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.types import MaskRuns
from phs_milvus.pointing.masks import MaskSource, read_mask
from phs_milvus.pointing.raster import BoolArray, paint_box, paint_disc, paint_polygon

# The radius of a click's disc, as a share of the image's shorter side: one patch of a 14x14 grid, so that the disc
# holds whole patches and still stays within most things that people click on.
DEFAULT_RELATIVE_RADIUS = 0.07


class _Combinable:
    """Gives prompts `a | b`."""

    def __or__(self, other: Prompt) -> Union:
        return Union((*_members(self), *_members(other)))

    def __ror__(self, other: Prompt) -> Union:
        return Union((*_members(other), *_members(self)))


@dataclass(frozen=True)
class Point(_Combinable):
    """A disc around a click.

    Attributes:
        x, y: centre in pixels.
        radius: in pixels; 0 is the one pixel under the point.
        relative_radius: the radius as a share of the image's shorter side, instead of `radius`. If neither is given,
            it is DEFAULT_RELATIVE_RADIUS.
        label: 1 selects the disc, 0 takes it away from everything that the other prompts select.

    Raises:
        PromptError: a value is not finite, a radius is negative, both radii are given, or the label is another one.
    """

    x: float
    y: float
    radius: float | None = None
    relative_radius: float | None = None
    label: int = 1

    def __post_init__(self) -> None:
        if self.radius is not None and self.relative_radius is not None:
            raise PromptError("point: give radius or relative_radius, not both")
        for name in ("x", "y", "radius", "relative_radius"):
            value = getattr(self, name)
            if value is not None or name in ("x", "y"):
                object.__setattr__(self, name, _number(value, f"point: {name}"))
            if name.endswith("radius") and (getattr(self, name) or 0) < 0:
                raise PromptError(f"point: {name} ({value}) must be 0 or more")
        if not isinstance(self.label, numbers.Integral) or self.label not in (0, 1):
            raise PromptError(f"point: label is 1 (select) or 0 (take away), got {reprlib.repr(self.label)}")

    def _paint(self, canvas: BoolArray) -> None:
        share = DEFAULT_RELATIVE_RADIUS if self.relative_radius is None else self.relative_radius
        radius = share * min(canvas.shape) if self.radius is None else self.radius
        if not paint_disc(canvas, self.x, self.y, radius, value=bool(self.label)):
            raise _outside(f"point ({_show(self.x, self.y)}) with radius {_show(radius)}", canvas)


@dataclass(frozen=True)
class Box(_Combinable):
    """A rectangle; it selects every pixel that it overlaps, even in part.

    Attributes:
        x0, y0: left and top in pixels.
        x1, y1: right and bottom, exclusive: Box(0, 0, width, height) is the whole image.

    Raises:
        PromptError: a value that is not finite, or x1 <= x0, or y1 <= y0; or a box within the first pixel, which is
            one of shares of the image (0 to 1) in all likelihood. That one pixel is Point(0, 0, radius=0).
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        for name in ("x0", "y0", "x1", "y1"):
            object.__setattr__(self, name, _number(getattr(self, name), f"box: {name}"))
        for low, high in (("x0", "x1"), ("y0", "y1")):
            start, stop = getattr(self, low), getattr(self, high)
            if stop <= start:
                raise PromptError(f"box: {high} ({_show(stop)}) must be greater than {low} ({_show(start)})")
        if _in_first_pixel(self.x0, self.y0, self.x1, self.y1):
            raise _first_pixel(f"box ({_show(self.x0, self.y0, self.x1, self.y1)})")

    def _paint(self, canvas: BoolArray) -> None:
        if not paint_box(canvas, self.x0, self.y0, self.x1, self.y1):
            raise _outside(f"box ({_show(self.x0, self.y0, self.x1, self.y1)})", canvas)


@dataclass(frozen=True)
class Polygon(_Combinable):
    """A closed outline, filled by the even-odd rule: the pixels whose centres lie inside.

    The polygon of a box's integer corners is that box. An outline too thin to hold any pixel's centre selects
    the pixels it passes through.

    Attributes:
        points: at least 3 corners (x, y) in pixels, as a sequence of pairs or an array [N, 2]; the last one is joined
            to the first.

    Raises:
        PromptError: there are fewer corners, one is not a pair, or a value is not finite.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        try:
            pairs = [tuple(pair) for pair in self.points]
        except TypeError:
            pairs = []
        if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
            raise PromptError(f"polygon: needs at least 3 points (x, y), got {reprlib.repr(self.points)}")
        named = ((f"polygon: point {i}", pair) for i, pair in enumerate(pairs))
        object.__setattr__(self, "points", tuple((_number(x, n), _number(y, n)) for n, (x, y) in named))

    def _paint(self, canvas: BoolArray) -> None:
        if not paint_polygon(canvas, self.points):
            raise _outside(f"polygon of {len(self.points)} points", canvas)


@dataclass(frozen=True, eq=False)
class Mask(_Combinable):
    """A mask of the upright image's size.

    Attributes:
        source: bool or integer array [H, W], nonzero is inside; a PIL image or the path of a lossless image
            file (PNG), where inside is what is neither black nor transparent; MaskRuns; or a COCO RLE
            {"size": [height, width], "counts": ...}, uncompressed (a list) or compressed (str or bytes). Soft masks,
            with many grey values, are inside from half of their range on: 128 of 255.

    Raises:
        PromptError: the source is of another type. Its content is checked when the prompt is put on an image.
    """

    source: MaskSource

    def __post_init__(self) -> None:
        if not isinstance(self.source, np.ndarray | Image.Image | str | os.PathLike | MaskRuns | Mapping):
            kinds = "an array, a PIL image, the path of a PNG, MaskRuns or a COCO RLE"
            raise PromptError(f"mask: expected {kinds}, got {type(self.source).__name__}")

    def _paint(self, canvas: BoolArray) -> None:
        array = read_mask(self.source, canvas.shape[1], canvas.shape[0])
        if not array.any():
            raise PromptError("mask: empty, no pixel is inside")
        canvas |= array


@dataclass(frozen=True)
class Union(_Combinable):
    """Everything that its members select; `a | b` makes one, and a list or tuple of prompts means the same."""

    members: Sequence[Prompt]


Prompt: TypeAlias = "Point | Box | Polygon | Mask | Union | Sequence[Prompt]"


def to_runs(prompt: Prompt | None, width: int, height: int) -> MaskRuns | None:
    """Puts a prompt on an image and returns the run lengths that travel to the server.

    Args:
        prompt: None means the whole image, which has no mask.
        width, height: pixels of the upright image.

    Returns:
        the runs, of `width` x `height` pixels; None without a prompt.

    Raises:
        PromptError: the prompt is malformed, lies outside the image, has another size, or selects nothing; in a union
            the message names the member: "prompt[2]: ...".
    """
    return None if prompt is None else MaskRuns.from_array(to_array(prompt, width, height))


def to_array(prompt: Prompt, width: int, height: int) -> BoolArray:
    """Puts a prompt on an image and returns bool [height, width]; arguments and errors as for `to_runs`."""
    # The stable sort puts negative points last, after everything that they take away from.
    members = sorted(_flatten(prompt, ""), key=lambda item: _is_negative(item[1]))
    if _is_negative(members[0][1]):
        raise PromptError("only negative points: nothing to take them away from; add a positive prompt")
    canvas = np.zeros((height, width), dtype=np.bool_)
    for name, member in members:
        try:
            member._paint(canvas)
        except PromptError as error:
            raise PromptError(f"{name}{error}", error.field) from error.__cause__
    if not canvas.any():
        raise PromptError("the negative points take away everything that the other prompts select")
    return canvas


def parse_box(text: str) -> Box:
    """Reads "x0,y0,x1,y1" in pixels; a PromptError shows the expected form."""
    try:
        x0, y0, x1, y1 = map(float, text.split(","))
    except ValueError:
        raise _usage("box", text, "x0,y0,x1,y1", "48,120,310,400") from None
    return Box(x0, y0, x1, y1)


def parse_point(text: str) -> Point:
    """Reads "x,y[,radius[,label]]" in pixels; an empty radius is the default. A PromptError shows the expected form."""
    match = re.fullmatch(r"([^,]+),([^,]+)(?:,\s*([^,]*?)\s*(?:,\s*([01])\s*)?)?", text)
    try:
        x, y, radius, label = match.groups() if match else ("", "", None, None)
        values = float(x), float(y), float(radius) if radius else None
    except ValueError:
        form = "x,y[,radius[,label]] with label 1 (select) or 0 (take away)"
        raise _usage("point", text, form, "320,240 or 320,240,25 or 320,240,25,0") from None
    if all(0 < value < 1 for value in values[:2]):
        raise _first_pixel(f"point ({_show(*values[:2])})")
    return Point(*values, label=int(label or 1))


def parse_polygon(text: str) -> Polygon:
    """Reads "x,y x,y x,y" in pixels, three corners or more; a PromptError shows the expected form."""
    try:
        corners = [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]
    except ValueError:
        corners = []
    if len(corners) < 3:
        raise _usage("polygon", text, "x,y x,y x,y, three corners or more", "10,10 200,40 120,300")
    if _in_first_pixel(*(value for corner in corners for value in corner)):
        raise _first_pixel(f"polygon of {len(corners)} points")
    return Polygon(corners)


# --- checks and texts ---------------------------------------------------------------------------------------


def _members(prompt: Prompt | _Combinable) -> Sequence[Prompt]:
    if isinstance(prompt, Union):
        return prompt.members
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
        return prompt
    return (prompt,)  # type: ignore[return-value]


def _flatten(prompt: Prompt, name: str) -> Iterator[tuple[str, Point | Box | Polygon | Mask]]:
    """(prefix of error messages, prompt) for each prompt in a union: the prefix is "prompt[2]: ", "" outside unions."""
    if isinstance(prompt, Point | Box | Polygon | Mask):
        yield f"{name}: " if name else "", prompt
        return
    members = _members(prompt)
    if len(members) == 1 and members[0] is prompt:
        raise PromptError(
            f"{name or 'prompt'}: expected Point, Box, Polygon, Mask or a list of them, got "
            f"{type(prompt).__name__} {reprlib.repr(prompt)}; for example Box(48, 120, 310, 400)"
        )
    if not members:
        raise PromptError(f"{name or 'prompt'}: an empty list selects nothing; None means the whole image")
    for index, member in enumerate(members):
        yield from _flatten(member, f"{name or 'prompt'}[{index}]")


def _is_negative(prompt: Point | Box | Polygon | Mask) -> bool:
    return isinstance(prompt, Point) and not prompt.label


def _number(value: object, what: str) -> float:
    # bool is an int to Python, but Point(True, 3) is a mistake.
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise PromptError(f"{what} must be a number, got {type(value).__name__} {reprlib.repr(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PromptError(f"{what} must be finite, got {number}")
    return number


def _show(*values: float) -> str:
    return ", ".join(f"{value:.10g}" for value in values)


def _outside(what: str, canvas: BoolArray) -> PromptError:
    size, frame = f"{canvas.shape[1]}x{canvas.shape[0]}", "pixels of the upright image (after EXIF rotation)"
    return PromptError(f"{what} lies entirely outside the {size} image; prompts are {frame}")


def _in_first_pixel(*values: float) -> bool:
    return min(values) >= 0 and max(values) <= 1


def _first_pixel(what: str) -> PromptError:
    remedy = "multiply shares of the image (0 to 1) by its width and height"
    return PromptError(f"{what} lies within the first pixel; prompts are in pixels: {remedy}")


def _usage(kind: str, text: str, form: str, example: str) -> PromptError:
    return PromptError(f"{kind} {reprlib.repr(text)}: expected {form}, in pixels, for example {example}")
