"""From the frame that labels were drawn in to pixels of the upright image.

Labels are drawn on an image as it was then: perhaps larger, perhaps before its EXIF orientation was applied. What the
annotation declares and what the file is decide together; where they leave two readings open, the image is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.headers import read_header
from phs_milvus.evaluation.datasets.model import Corners

BoolArray = npt.NDArray[np.bool_]
Size = tuple[float, float]

# In pixels: tools write shares with six digits, which is .004 of a side of 4,000.
_ROUNDING = 0.01
FRAMES = ("upright", "stored")
# EXIF orientation -> where a point of the unit square goes when the picture is turned upright.
_TURNS = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
_TURN_ARRAYS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a[::-1].T,
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[::-1],
}


@dataclass(frozen=True)
class Picture:
    """An image file's size in pixels as stored, and the EXIF orientation (1 to 8) that turns it upright."""

    stored: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as people see it."""
        return self.stored if self.orientation < 5 else self.stored[::-1]


@dataclass(frozen=True)
class Frame:
    """A map from a file's coordinates to pixels of the upright image.

    Attributes:
        size: width and height of the image in the file's coordinates.
        orientation: the EXIF orientation by which the labels are still to be turned; 1: none.
        upright: width and height of the upright image in pixels.
    """

    size: Size
    orientation: int
    upright: tuple[int, int]

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A point in pixels of the upright image."""
        if self.orientation == 1 and self.size == self.upright:
            return x, y  # exactly: no rounding for the usual case
        x, y = _TURNS[self.orientation](x / self.size[0], y / self.size[1])
        return x * self.upright[0], y * self.upright[1]

    def box(self, box: Corners) -> Corners:
        """A box in pixels of the upright image; not clipped.

        Sides that are whole pixels but for rounding become whole: a box selects every pixel that it touches.
        """
        (xa, ya), (xb, yb) = self.point(*box[:2]), self.point(*box[2:])
        sides = min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)
        if sides == box:
            return box
        x0, y0, x1, y1 = (round(side) if abs(side - round(side)) < _ROUNDING else side for side in sides)
        return float(x0), float(y0), float(x1), float(y1)

    def mask(self, mask: BoolArray) -> BoolArray:
        """A mask bool [height, width] at the upright image's size.

        Raises:
            InvalidInput: a mask of another size than that of the labels' frame.
        """
        wanted = (round(self.size[1]), round(self.size[0]))
        if mask.shape != wanted and min(self.size) > 1:
            raise InvalidInput(
                f"the mask is {mask.shape[1]}x{mask.shape[0]}, its labels are for {wanted[1]}x{wanted[0]}", "dataset"
            )
        turned = _TURN_ARRAYS[self.orientation](mask)
        if turned.shape == self.upright[::-1]:
            return np.ascontiguousarray(turned)
        resized = Image.fromarray(turned.astype(np.uint8)).resize(self.upright, Image.Resampling.NEAREST)
        return np.asarray(resized).astype(np.bool_)


class AmbiguousFrame(InvalidInput):
    """The labels of an image could be in several frames."""


def picture_of(path: Path) -> Picture:
    """Reads a file's header.

    Raises:
        ImageError, OSError: it is no image, or cannot be read.
    """
    header = read_header(path.read_bytes())
    return Picture((header.width, header.height), header.orientation)


def frame_of(picture: Picture, declared: Size | None, unit: float | None, boxes: list[Corners], told: str) -> Frame:
    """The frame that an image's labels are in.

    Args:
        declared: the size that the annotations give for the image, or None.
        unit: what the image's sides are in its coordinates; None: pixels.
        boxes: in the file's coordinates; of a photo that EXIF turns, they may fit into one frame only.
        told: "upright" or "stored" where the user has said so, else "".

    Raises:
        AmbiguousFrame: the message names the sizes and the way out.
    """
    turned = told or _turned(picture, declared, unit, boxes)
    orientation = picture.orientation if turned == "stored" else 1
    size = picture.stored if turned == "stored" else picture.upright
    if declared is not None and not _same_ratio(declared, size):
        raise AmbiguousFrame(
            f"its labels are for {_show(declared)} and the file is {_show(picture.upright)}, of another shape: "
            "was it cropped or padded? Export the labels again",
            "dataset",
        )
    return Frame((unit, unit) if unit else declared or size, orientation, picture.upright)


def _turned(picture: Picture, declared: Size | None, unit: float | None, boxes: list[Corners]) -> str:
    """Whether labels were drawn on the upright or on the stored image."""
    stored, upright = picture.stored, picture.upright
    if picture.orientation == 1:
        return "upright"
    if declared is not None and _same_ratio(declared, stored) != _same_ratio(declared, upright):
        return "stored" if _same_ratio(declared, stored) else "upright"
    if declared is None and unit is None:
        fits_stored, fits_upright = _fit(boxes, stored), _fit(boxes, upright)
        if fits_stored != fits_upright:
            return "stored" if fits_stored else "upright"
    raise AmbiguousFrame(
        f"EXIF turns it from {_show(stored)} to {_show(upright)}, and nothing tells whether its labels were drawn "
        "before or after that; say --frame stored or --frame upright",
        "dataset",
    )


def _same_ratio(a: Size, b: Size) -> bool:
    """Whether one is the other resized, to a pixel's rounding."""
    scale = max(b) / max(a)
    return all(abs(side * scale - other) <= max(1.0, scale) for side, other in zip(a, b, strict=True))


def _fit(boxes: list[Corners], size: Size) -> bool:
    return all(box[2] <= size[0] + 1 and box[3] <= size[1] + 1 for box in boxes)


def _show(size: Size) -> str:
    return f"{size[0]:g}x{size[1]:g}"
