"""What annotation files say, in their own frame and units, as every reader hands it to `assemble`.

Readers know one format each and nothing about image files. A record that cannot be used is skipped and named, never
the end of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import shown
from phs_milvus.evaluation.datasets.frames import Frame
from phs_milvus.evaluation.datasets.model import AnnotationError, Corners
from phs_milvus.pointing.prompts import Mask, Polygon, Prompt

# Makes the prompt of an outline, given how the file's coordinates map to the upright image.
Outline = Callable[[Frame], Prompt]


Ring = list[tuple[float, float]]


class InvertedBox(AnnotationError):
    """x1 < x0 or y1 < y0."""


class FirstPixelBox(AnnotationError):
    """A box in pixels that lies wholly within the first pixel: shares of the image, in all likelihood."""


@dataclass(frozen=True)
class ObjectRecord:
    """An object as a file describes it.

    Attributes:
        where: what messages call it, for example "annotation 7".
        box: x0, y0, x1, y1 in the file's units, x1 and y1 exclusive.
        reversed: the box was written with a negative width or height, and turned round by the reader.
    """

    where: str
    label: str
    box: Corners
    is_query: bool = True
    outline: Outline | None = None
    reversed: bool = False


@dataclass(frozen=True)
class ImageRecord:
    """An image as a file describes it.

    Attributes:
        file: the annotation file, for messages.
        names: what its image file may be called, the likeliest first.
        size: width and height that the file declares, or None.
        id: None: the name of the image file.
    """

    file: Path
    names: tuple[str, ...]
    size: tuple[float, float] | None
    objects: Sequence[ObjectRecord]
    id: str | None = None


@dataclass(frozen=True)
class Source:
    """All that an annotation file or folder says.

    Attributes:
        places: folders in which the images may lie.
        unit: width and height of an image in its coordinates: 1 for shares, 100 for percent, None for pixels.
    """

    name: str
    records: Sequence[ImageRecord]
    places: Sequence[Path]
    unit: float | None = None


@dataclass
class Findings:
    """What was found wrong, or changed, on the way from a file to a Dataset."""

    skipped: list[str] = field(default_factory=list)
    inverted: int = 0
    first_pixel: list[str] = field(default_factory=list)
    _notes: dict[str, tuple[int, str]] = field(default_factory=dict)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Notes down an AnnotationError raised inside, and goes on after the block."""
        try:
            yield
        except AnnotationError as error:
            self.skipped.append(str(error))
            self.inverted += isinstance(error, InvertedBox)
            if isinstance(error, FirstPixelBox):
                self.first_pixel.append(str(error))

    def note(self, what: str, example: str) -> None:
        """Counts something that was changed; the first example is kept."""
        count, first = self._notes.get(what, (0, shown(example)))
        self._notes[what] = count + 1, first

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of change."""
        return tuple(f"{count} {what}; the first: {first}" for what, (count, first) in self._notes.items())


def required(record: Any, name: str, kind: type | tuple[type, ...], file: Path, where: str) -> Any:
    """A field of a record that must be there and of a type; AnnotationError names it otherwise."""
    if not isinstance(record, Mapping):
        raise AnnotationError(file, where, "record", f"is {type(record).__name__}, not an object")
    if name not in record:
        raise AnnotationError(file, where, name, "is missing")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise AnnotationError(file, where, name, f"is {value!r:.60}")
    return value


def key(record: Any, name: str, file: Path, where: str) -> str:
    """An identifier as text: tools write 7, 7.0 and "7" for the same thing."""
    value = required(record, name, (int, float, str), file, where)
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value).strip()


def label_of(value: Any, file: Path, where: str, name: str) -> str:
    """A class's name: text or a number, not empty."""
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise AnnotationError(file, where, name, f"is no class name: {value!r:.60}")
    return str(value).strip()


def size_of(width: Any, height: Any) -> tuple[float, float] | None:
    """A declared size, or None where a file declares none: VOC's 0x0, empty cells, nonsense."""
    try:
        size = float(width), float(height)
    except (TypeError, ValueError):
        return None
    return size if all(math.isfinite(side) and side > 0 for side in size) else None


def numbers(values: Any, count: int, file: Path, where: str, name: str) -> list[float]:
    """So many finite numbers, also where they are written as text."""
    try:
        found = [float(value) for value in values]
    except (TypeError, ValueError):
        found = []
    if len(found) != count or not all(map(math.isfinite, found)):
        raise AnnotationError(file, where, name, f"is not {count} finite numbers: {values!r:.60}")
    return found


def corners(values: Any, file: Path, where: str, name: str) -> Corners:
    """x0, y0, x1, y1 with x0 < x1 and y0 < y1.

    Raises:
        AnnotationError: a box of no width or height.
        InvertedBox: a box whose corners are in another order. They are not swapped: x, y, width and height that were
            written as corners look the same.
    """
    x0, y0, x1, y1 = numbers(values, 4, file, where, name)
    if x1 <= x0 or y1 <= y0:
        raise (InvertedBox if x1 < x0 or y1 < y0 else AnnotationError)(
            file, where, name, f"is not a box with x0 < x1 and y0 < y1: {x0:g}, {y0:g}, {x1:g}, {y1:g}"
        )
    return x0, y0, x1, y1


def from_width_and_height(values: Any, file: Path, where: str, name: str) -> tuple[Corners, bool]:
    """x, y, width, height as corners, and whether a negative side was turned round.

    COCO and Visual Genome have boxes of no width, which are degenerate rather than malformed: a pixel stands for them.
    """
    x, y, width, height = numbers(values, 4, file, where, name)
    x0, x1 = (x, x + (width or 1)) if width >= 0 else (x + width, x)
    y0, y1 = (y, y + (height or 1)) if height >= 0 else (y + height, y)
    return (x0, y0, x1, y1), width < 0 or height < 0


def ring_of(points: Any, file: Path, where: str, *, fewest: int = 3) -> Ring:
    """Corners as (x, y) pairs of finite numbers, so many at least."""
    if not isinstance(points, list) or len(points) < fewest:
        raise AnnotationError(file, where, "points", f"is no list of {fewest} corners or more: {points!r:.60}")
    return [(x, y) for x, y in (numbers(pair, 2, file, where, "points") for pair in points)]


def around(rings: Sequence[Ring]) -> Corners:
    """The box around outlines, which is as wide as a pixel at least."""
    xs, ys = zip(*(point for ring in rings for point in ring), strict=True)
    return min(xs), min(ys), max(max(xs), min(xs) + 1e-6), max(max(ys), min(ys) + 1e-6)


def polygons(rings: Sequence[Ring]) -> Outline:
    """The outline that closed rings of (x, y) make together."""
    return lambda frame: [Polygon([frame.point(x, y) for x, y in ring]) for ring in rings]


def bitmap(read: Callable[[], Any]) -> Outline:
    """The outline of a mask that is read, as bool [height, width], when it is asked for."""
    return lambda frame: Mask(frame.mask(read()))
