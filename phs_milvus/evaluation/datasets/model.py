"""What a labelled set of images is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.pointing.prompts import Prompt

Corners = tuple[float, float, float, float]

# Of things left out, how many are named.
NAMED = 10


class AnnotationError(InvalidInput):
    """An annotation cannot be used. The text names file, record and field; `problem` leaves the file out."""

    def __init__(self, file: Path, record: str, field: str, problem: str) -> None:
        self.problem = f"{record + ': ' if record else ''}{field}: {problem}"
        super().__init__(f"{file}: {self.problem}", "dataset")


class DatasetWarning(UserWarning):
    """Something in a labelled set was left out, merged or converted."""


@dataclass(frozen=True)
class Instance:
    """One object in an image.

    Attributes:
        label: its class.
        box: x0, y0, x1, y1 in pixels of the upright image, x1 and y1 exclusive, inside the image.
        is_query: False for objects that are no fair query: VOC's `difficult`, COCO's `iscrowd`, Open Images'
            `IsGroupOf`. They count as present, so an image that holds only such objects of a class is relevant to it.
        segment: makes the prompt that outlines it, and raises InvalidInput where the outline is broken; None where the
            file has no outline.
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
    """A labelled set of images, each file once, in the order of their ids.

    Attributes:
        missing: ids of annotated images whose file is not there; partial downloads are common.
        unreadable: what is wrong with images that were left out because they cannot be used, by id.
        skipped: what is wrong with each annotation that was left out, naming file, record and field.
        notes: what was converted or merged, one sentence for each kind.
    """

    name: str
    images: tuple[LabelledImage, ...]
    missing: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Every class that occurs, sorted."""
        return sorted({instance.label for image in self.images for instance in image.instances})

    @property
    def remarks(self) -> list[str]:
        """What a user should know before trusting the numbers: one line for each kind of thing, ten names at most."""
        lines = list(self.notes)
        if self.missing:
            lines.append(f"left out: {counted(self.missing)}, annotated but without a file")
        lines += listed(f"left out: {len(self.skipped)} annotation(s) that cannot be used", self.skipped)
        lines += listed(
            f"left out: {len(self.unreadable)} image(s) that cannot be used", tuple(self.unreadable.values())
        )
        return lines


def listed(heading: str, problems: Sequence[str]) -> list[str]:
    """A heading and the first problems, a line each; nothing where there is no problem."""
    if not problems:
        return []
    more = [f"  and {len(problems) - NAMED} more"] if len(problems) > NAMED else []
    return [f"{heading}:", *(f"  {problem}" for problem in problems[:NAMED]), *more]


def counted(names: Sequence[str]) -> str:
    """How many, and the first of them: "12 (a, b, ...)"."""
    first = ", ".join(shown(name) for name in names[:NAMED])
    return f"{len(names)} ({first}{', ...' if len(names) > NAMED else ''})"
