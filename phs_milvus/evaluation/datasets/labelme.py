"""LabelMe: a JSON file for each image, with rectangles, polygons, circles and masks."""

from __future__ import annotations

import base64
import io
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phs_milvus.evaluation.datasets.frames import Frame
from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Source,
    around,
    label_of,
    polygons,
    required,
    ring_of,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_json, visible
from phs_milvus.pointing.prompts import Mask, Prompt

_CIRCLE = 32  # corners of the polygon that stands for one


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """`path` is a folder of JSON files or one of them; images lie where "imagePath" says, or beside their JSON."""
    root = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else visible(root, "*.json")
    records = []
    for file in files:
        with findings.skipping():
            records.append(_image(file, root, findings))
    folders = [root, *dict.fromkeys(file.parent for file in files)]
    places = [images] if images else [*folders, root / "images", root.parent / "images", root.parent]
    return Source(root.name, records, places)


def _image(file: Path, root: Path, findings: Findings) -> ImageRecord:
    value = read_json(file)
    shapes = required(value, "shapes", list, file, "")
    name = value.get("imagePath")
    objects = []
    for index, shape in enumerate(shapes):
        with findings.skipping():
            objects.append(_object(shape, file, f"shape {index}"))
    inner = file.relative_to(root)
    stem = inner.with_suffix("").as_posix()
    names = ((inner.parent / name.replace("\\", "/")).as_posix(), stem) if isinstance(name, str) and name else (stem,)
    size = size_of(value.get("imageWidth"), value.get("imageHeight"))
    return ImageRecord(file, names, size, objects, id=stem)


def _object(shape: Any, file: Path, where: str) -> ObjectRecord:
    label = label_of(required(shape, "label", (str, int), file, where), file, where, "label")
    points = ring_of(required(shape, "points", list, file, where), file, where, fewest=1)
    kind = shape.get("shape_type") or "polygon"
    if kind in ("rectangle", "mask") and len(points) == 2:
        # Two opposite corners, in the order in which they were clicked.
        outline = partial(_mask, shape.get("mask"), around([points]), file, where) if kind == "mask" else None
        return ObjectRecord(where, label, around([points]), outline=outline)
    if kind == "circle" and len(points) == 2:
        ring = _circle(*points)
    elif kind in ("polygon", "rectangle") and len(points) >= 3:
        ring = points
    else:
        raise AnnotationError(file, where, "shape_type", f"{kind!r:.40} of {len(points)} points has no area")
    return ObjectRecord(where, label, around([ring]), outline=polygons([ring]))


def _circle(centre: tuple[float, float], edge: tuple[float, float]) -> list[tuple[float, float]]:
    radius = math.dist(centre, edge)
    angles = (2 * math.pi * step / _CIRCLE for step in range(_CIRCLE))
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _mask(encoded: Any, box: tuple[float, float, float, float], file: Path, where: str, frame: Frame) -> Prompt:
    """A PNG of the pixels inside the box, in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            inside = np.asarray(picture.convert("L")) > 0
        canvas = np.zeros((round(frame.size[1]), round(frame.size[0])), np.bool_)
        x, y = round(box[0]), round(box[1])
        height, width = inside.shape
        canvas[y : y + height, x : x + width] = inside
    except (TypeError, ValueError, OSError) as error:
        raise AnnotationError(file, where, "mask", f"cannot be read: {error}") from error
    return Mask(frame.mask(canvas))
