"""What a labelled set of images is, whatever file it came from, and how readers report what is wrong with a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.pointing.prompts import Prompt

Corners = tuple[float, float, float, float]


class AnnotationError(InvalidInput):
    """An annotation file cannot be used. The text names the file, the record and the field."""

    def __init__(self, file: Path, record: str, field: str, problem: str) -> None:
        super().__init__(f"{file}: {record + ': ' if record else ''}{field}: {problem}", "dataset")


@dataclass(frozen=True)
class Instance:
    """One object in an image.

    Attributes:
        label: its class.
        box: x0, y0, x1, y1 in pixels of the upright image, x1 and y1 exclusive.
        is_query: False for objects that are no fair query: VOC's `difficult`, COCO's `iscrowd`. They count as present.
        segment: makes the prompt that outlines it; None where the file has no outline.
    """

    label: str
    box: Corners
    is_query: bool = True
    segment: Callable[[], Prompt] | None = field(default=None, compare=False)

    @property
    def area(self) -> float:
        """Of the box, in square pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class LabelledImage:
    """An image file and the objects in it."""

    id: str
    path: Path
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class Dataset:
    """A labelled set of images, in the order of their ids.

    Attributes:
        missing: ids of annotated images whose file is not there; partial downloads are common.
        unreadable: what is wrong with images that were left out because they cannot be used, by id.
    """

    name: str
    images: tuple[LabelledImage, ...]
    missing: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Every class that occurs, sorted."""
        return sorted({instance.label for image in self.images for instance in image.instances})


def there(name: str, images: Iterable[LabelledImage]) -> Dataset:
    """The images whose file is there, and which are not."""
    found, missing = [], []
    for image in images:
        if image.path.is_file():
            found.append(image)
        else:
            missing.append(image.id)
    return Dataset(name, tuple(found), tuple(missing))


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        AnnotationError: unreadable, or not JSON.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(file, "", "file", f"is not readable JSON: {error}") from error


def required(record: Mapping[str, Any], field: str, kind: type | tuple[type, ...], file: Path, where: str) -> Any:
    """A field of a record that must be there and of a type; AnnotationError names it otherwise."""
    if not isinstance(record, Mapping):
        raise AnnotationError(file, where, "record", f"is {type(record).__name__}, not an object")
    if field not in record:
        raise AnnotationError(file, where, field, "is missing")
    value = record[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise AnnotationError(file, where, field, f"is {value!r:.60}")
    return value


def corners(values: Sequence[Any], file: Path, where: str, field: str) -> Corners:
    """x0, y0, x1, y1 as finite floats with x0 < x1 and y0 < y1; AnnotationError otherwise."""
    try:
        x0, y0, x1, y1 = (float(value) for value in values)
    except (TypeError, ValueError):
        raise AnnotationError(file, where, field, f"is not four numbers: {values!r:.60}") from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise AnnotationError(
            file, where, field, f"is not a box with x0 < x1 and y0 < y1: {x0:g}, {y0:g}, {x1:g}, {y1:g}"
        )
    return x0, y0, x1, y1
