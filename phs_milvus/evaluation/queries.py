"""Which objects are queries, and the prompt each is pointed at with (docs/DESIGN.md, "Evaluation")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import Dataset, Instance
from phs_milvus.evaluation.datasets.model import Corners
from phs_milvus.pointing.prompts import Box, Point, Prompt, to_array

PROMPTS = ("box", "point", "segmentation")


@dataclass(frozen=True)
class ObjectQuery:
    """One object of one image; `image` is its position in the dataset."""

    image: int
    instance: Instance


def object_queries(dataset: Dataset) -> list[ObjectQuery]:
    """Per image with objects of at least two classes and per class, the largest object that may be a query."""
    queries = []
    for position, image in enumerate(dataset.images):
        if len({instance.label for instance in image.instances}) < 2:
            continue
        largest: dict[str, Instance] = {}
        for instance in image.instances:
            if instance.is_query and (instance.label not in largest or instance.area > largest[instance.label].area):
                largest[instance.label] = instance
        queries += [ObjectQuery(position, largest[label]) for label in sorted(largest)]
    return queries


def evenly(queries: Sequence[ObjectQuery], count: int | None) -> Sequence[ObjectQuery]:
    """`count` of the queries at even steps, in their order; all of them where there are no more, or it is None."""
    if count is None or count >= len(queries):
        return queries
    return [queries[step * len(queries) // count] for step in range(count)]


def prompt_of(instance: Instance, kind: str, width: int, height: int) -> Prompt:
    """The prompt of a kind for an object in an image of width x height pixels.

    "point" is a disc of the default radius around the centre of gravity of the outline; of the box where there is no
    outline, or a broken one.

    Raises:
        InvalidInput: an unknown kind, or an outline wanted where the dataset has none or a broken one.
    """
    if kind == "box":
        return box_of(instance.box)
    if kind == "segmentation":
        if instance.segment is None:
            raise InvalidInput("the dataset has no outline for it; use box or point", "prompt")
        return instance.segment()
    if kind != "point":
        raise InvalidInput(f"'{kind}' is not one of {', '.join(PROMPTS)}", "prompt")
    return Point(*centre_of(instance, width, height))


def box_of(corners: Corners) -> Prompt:
    """A box that is known to be in pixels. `Box` refuses that of the first pixel, as shares of an image look so."""
    return Point(0, 0, radius=0) if min(corners) >= 0 and max(corners) <= 1 else Box(*corners)


def outline_of(instance: Instance, width: int, height: int) -> npt.NDArray[np.bool_] | None:
    """The outline filled, bool [height, width]; None where the dataset has none or a broken one."""
    if instance.segment is None:
        return None
    try:
        return to_array(instance.segment(), width, height)
    except InvalidInput:
        return None


def centre_of(instance: Instance, width: int, height: int) -> tuple[float, float]:
    """x, y of the outline's centre of gravity, or of the box's centre, brought inside the image."""
    outline = outline_of(instance, width, height)
    if outline is not None:
        rows, columns = outline.nonzero()
        x, y = float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
    else:
        x0, y0, x1, y1 = instance.box
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return min(max(x, 0.0), width - 0.5), min(max(y, 0.0), height - 0.5)
