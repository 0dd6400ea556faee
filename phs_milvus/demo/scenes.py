"""The bundled demo scenes with their ground truth, and the queries made from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phs_milvus.contract.types import MaskRuns
from phs_milvus.pointing.prompts import Box, Mask, Point, Prompt


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        label: its category.
        box: x0, y0, x1, y1 of the visible part in pixels, x1 and y1 exclusive.
        runs: the visible part's mask as row-major run lengths, zeros first.
    """

    label: str
    box: tuple[int, int, int, int]
    runs: tuple[int, ...]

    @property
    def area(self) -> int:
        """Pixels of the box."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Scene:
    """One picture, width x height pixels; `name` is its file name and its id in the collection."""

    name: str
    width: int
    height: int
    objects: tuple[SceneObject, ...]

    @property
    def labels(self) -> frozenset[str]:
        """The categories of its objects."""
        return frozenset(item.label for item in self.objects)


@dataclass(frozen=True)
class DemoQuery:
    """One object of a scene as a query; `kind` is "box", "point" or "mask"."""

    scene: Scene
    target: SceneObject
    kind: str

    @property
    def prompt(self) -> Prompt:
        """The target's box, a click in the middle of its visible pixels, or its exact mask."""
        if self.kind == "box":
            return Box(*self.target.box)
        runs = MaskRuns(self.scene.width, self.scene.height, np.array(self.target.runs, np.uint32))
        if self.kind == "mask":
            return Mask(runs)
        rows, columns = np.nonzero(runs.to_array())
        # The visible pixel nearest to the mean of all: the mean itself may lie on something in front.
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        return Point(float(columns[middle]) + 0.5, float(rows[middle]) + 0.5)


def load_scenes(folder: Path) -> list[Scene]:
    """Reads the scenes.json that tools/demo_model/scenes.py wrote into `folder`."""
    records = json.loads((folder / "scenes.json").read_text())["scenes"]
    return [
        Scene(
            record["file"],
            record["width"],
            record["height"],
            tuple(SceneObject(item["label"], tuple(item["box"]), tuple(item["mask"])) for item in record["objects"]),
        )
        for record in records
    ]


def queries(scenes: list[Scene], kinds: tuple[str, ...], count: int) -> list[DemoQuery]:
    """`count` queries at even steps through all (scene, category) pairs, so that results do not decide what is shown.

    As in the evaluation protocol, the target is the largest object of its category in the scene. The kinds of prompts
    alternate.
    """
    pairs = list(_pairs(scenes))
    steps = np.linspace(0, len(pairs), min(count, len(pairs)), endpoint=False).astype(int)
    chosen = [pairs[step] for step in steps]
    return [DemoQuery(scene, target, kinds[turn % len(kinds)]) for turn, (scene, target) in enumerate(chosen)]


def _pairs(scenes: list[Scene]) -> Iterator[tuple[Scene, SceneObject]]:
    for scene in scenes:
        if len(scene.labels) < 2:
            continue
        for label in sorted(scene.labels):
            yield scene, max((item for item in scene.objects if item.label == label), key=lambda item: item.area)
