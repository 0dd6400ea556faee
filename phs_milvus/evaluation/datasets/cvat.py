"""CVAT for images 1.1: one XML file with boxes (turned or not), polygons, ellipses and masks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from phs_milvus.evaluation.datasets.coco import places
from phs_milvus.evaluation.datasets.frames import Frame
from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Ring,
    Source,
    around,
    corners,
    label_of,
    numbers,
    polygons,
    ring_of,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_xml
from phs_milvus.pointing.prompts import Mask, Prompt

_ELLIPSE = 32  # corners of the polygon that stands for one


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """`path` is annotations.xml or its folder; images lie in images/ or beside it, under the names of the tasks."""
    file = path / "annotations.xml" if path.is_dir() else path
    root = read_xml(file)
    if root.tag != "annotations":
        raise AnnotationError(file, "", "file", f"is no CVAT export but <{root.tag}>")
    if root.find("track") is not None:
        raise AnnotationError(file, "", "file", "is CVAT for video; export as 'CVAT for images 1.1'")
    records = []
    for number, element in enumerate(root.iterfind("image")):
        with findings.skipping():
            name = element.get("name") or ""
            if not name:
                raise AnnotationError(file, f"image {element.get('id', number)}", "name", "is missing")
            size = size_of(element.get("width"), element.get("height"))
            records.append(ImageRecord(file, (name,), size, _objects(element, file, name, findings)))
    found = [images] if images else places(file)
    return Source(file.parent.name, sorted(records, key=lambda record: record.names[0]), found)


def _objects(image: ElementTree.Element, file: Path, name: str, findings: Findings) -> list[ObjectRecord]:
    objects = []
    for number, element in enumerate(image):
        if element.tag == "tag":
            continue  # says something of the image as a whole
        with findings.skipping():
            objects.append(_object(element, file, f"{name}, {element.tag} {number}"))
    return objects


def _object(element: ElementTree.Element, file: Path, where: str) -> ObjectRecord:
    label = label_of(element.get("label"), file, where, "label")
    if element.tag == "box":
        box = corners([element.get(side) for side in ("xtl", "ytl", "xbr", "ybr")], file, where, "xtl, ytl, xbr, ybr")
        (angle,) = numbers([element.get("rotation") or 0], 1, file, where, "rotation")
        if not angle:
            return ObjectRecord(where, label, box)
        x0, y0, x1, y1 = box
        ring = turned([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], ((x0 + x1) / 2, (y0 + y1) / 2), angle)
    elif element.tag == "polygon":
        pairs = [pair.split(",") for pair in (element.get("points") or "").split(";") if pair]
        ring = ring_of(pairs, file, where)
    elif element.tag == "ellipse":
        ring = _ellipse(element, file, where)
    elif element.tag == "mask":
        sides = [element.get(side) for side in ("left", "top", "width", "height")]
        left, top, width, height = numbers(sides, 4, file, where, "left, top, width, height")
        box = corners((left, top, left + width, top + height), file, where, "left, top, width, height")
        return ObjectRecord(where, label, box, outline=partial(_mask, element.get("rle") or "", box, file, where))
    else:
        raise AnnotationError(file, where, "shape", f"<{element.tag}> has no area")
    return ObjectRecord(where, label, around([ring]), outline=polygons([ring]))


def turned(ring: Ring, centre: tuple[float, float], degrees: float) -> Ring:
    """A ring turned clockwise, y pointing down."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [
        (
            centre[0] + (x - centre[0]) * cos - (y - centre[1]) * sin,
            centre[1] + (x - centre[0]) * sin + (y - centre[1]) * cos,
        )
        for x, y in ring
    ]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float) -> Ring:
    """A polygon that stands for a turned ellipse."""
    angles = (2 * math.pi * step / _ELLIPSE for step in range(_ELLIPSE))
    return turned([(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles], (x, y), degrees)


def _ellipse(element: ElementTree.Element, file: Path, where: str) -> Ring:
    sides = [element.get(side) for side in ("cx", "cy", "rx", "ry")] + [element.get("rotation") or 0]
    x, y, radius_x, radius_y, angle = numbers(sides, 5, file, where, "cx, cy, rx, ry, rotation")
    return ellipse(x, y, radius_x, radius_y, angle)


def _mask(text: str, box: tuple[float, float, float, float], file: Path, where: str, frame: Frame) -> Prompt:
    """Run lengths inside the box, row by row, zeros first."""
    x0, y0, x1, y1 = (round(side) for side in box)
    runs = [int(run) for run in numbers(text.split(","), len(text.split(",")), file, where, "rle")]
    if min(runs) < 0 or sum(runs) != (x1 - x0) * (y1 - y0):
        raise AnnotationError(file, where, "rle", f"has {sum(runs)} pixels for {x1 - x0}x{y1 - y0}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(y1 - y0, x1 - x0)
    canvas = np.zeros((round(frame.size[1]), round(frame.size[0])), np.bool_)
    if y1 > canvas.shape[0] or x1 > canvas.shape[1] or min(x0, y0) < 0:
        raise AnnotationError(file, where, "rle", f"reaches beyond the {canvas.shape[1]}x{canvas.shape[0]} image")
    canvas[y0:y1, x0:x1] = inside
    return Mask(frame.mask(canvas))
