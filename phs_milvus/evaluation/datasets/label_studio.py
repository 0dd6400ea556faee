"""Label Studio JSON, full and "min": regions in percent of the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from phs_milvus.evaluation.datasets.coco import places
from phs_milvus.evaluation.datasets.cvat import ellipse, turned
from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.places import PICTURES, spellings
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Ring,
    Source,
    around,
    label_of,
    numbers,
    polygons,
    ring_of,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_json

_LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels", "keypointlabels", "labels")


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """All annotators' regions are taken, cancelled annotations and predictions are not."""
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise AnnotationError(path, "", "file", f"is a JSON {type(tasks).__name__}, not a list of tasks")
    records = []
    for index, task in enumerate(tasks):
        with findings.skipping():
            where = f"task {task.get('id', index) if isinstance(task, dict) else index}"
            objects, size = [], None
            for region in _regions(task, path, where):
                with findings.skipping():
                    size = size_of(region.get("original_width"), region.get("original_height")) or size
                    if (found := _object(region, path, where)) is not None:
                        objects.append(found)
            records.append(ImageRecord(path, _names(task, path, where), size, objects))
    return Source(
        path.stem, sorted(records, key=lambda record: record.names[0]), [images] if images else places(path), 100
    )


def _names(task: Any, path: Path, where: str) -> tuple[str, ...]:
    """The image's path or address, which is the value of `data` that looks like one, and the upload's name."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    texts = [value for value in (data.get("image"), *data.values()) if isinstance(value, str) and value]
    pictures = [text for text in texts if PurePosixPath(spellings(text)[0]).suffix.lower() in PICTURES]
    names = [name for name in (*pictures[:1], task.get("file_upload"), *texts[:1]) if isinstance(name, str) and name]
    if not names:
        raise AnnotationError(path, where, "image", "is missing")
    return tuple(names)


def _regions(task: Any, path: Path, where: str) -> Iterator[dict[str, Any]]:
    """Each region with its value, of the full form (annotations, result) or of "min" (a list for each control)."""
    if not isinstance(task, dict):
        raise AnnotationError(path, where, "task", f"is {type(task).__name__}, not an object")
    if isinstance(task.get("annotations"), list):
        for annotation in task["annotations"]:
            if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
                results = annotation.get("result")
                for region in results if isinstance(results, list) else []:
                    if isinstance(region, dict) and isinstance(region.get("value"), dict):
                        yield {**region, **region["value"]}
        return
    for value in task.values():
        if isinstance(value, list):
            yield from (entry for entry in value if isinstance(entry, dict) and any(name in entry for name in _LABELS))


def _object(region: dict[str, Any], path: Path, where: str) -> ObjectRecord | None:
    """None for what is no region: choices, texts, relations."""
    kind = next((name for name in _LABELS if name in region), None)
    if kind is None:
        return None
    where = f"{where}, region {region['id']}" if "id" in region else where
    names = region[kind]
    label = label_of(names[0] if isinstance(names, list) and names else None, path, where, kind)
    if region.get("image_rotation"):
        raise AnnotationError(path, where, "image_rotation", f"is {region['image_rotation']!r:.20}, not 0")
    ring = _ring(region, kind, path, where)
    plain = kind == "rectanglelabels" or (kind == "labels" and "width" in region)
    outline = None if plain and not region.get("rotation") else polygons([ring])
    return ObjectRecord(where, label, around([ring]), outline=outline)


def _ring(region: dict[str, Any], kind: str, path: Path, where: str) -> Ring:
    """A region's outline in percent. Turning is done in pixels: percents of width and height differ."""
    if "points" in region:
        return ring_of(region["points"], path, where)
    if "rle" in region or not ({"width", "height"} <= set(region) or "radiusX" in region):
        raise AnnotationError(path, where, kind, "has no outline that can be read; export brush masks as COCO or PNG")
    size = size_of(region.get("original_width"), region.get("original_height"))
    (angle,) = numbers([region.get("rotation") or 0], 1, path, where, "rotation")
    if angle and size is None:
        raise AnnotationError(path, where, "rotation", f"is {angle:g} degrees, of an image whose size is not given")
    scale_x, scale_y = (size[0] / 100, size[1] / 100) if size else (1.0, 1.0)
    if "radiusX" in region:
        x, y, rx, ry = numbers([region.get(n) for n in ("x", "y", "radiusX", "radiusY")], 4, path, where, "ellipse")
        ring = ellipse(x * scale_x, y * scale_y, rx * scale_x, ry * scale_y, angle)
    else:
        x, y, w, h = numbers([region.get(n) for n in ("x", "y", "width", "height")], 4, path, where, "rectangle")
        if w <= 0 or h <= 0:
            raise AnnotationError(path, where, "rectangle", f"is {w:g}x{h:g} percent")
        flat = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
        # Label Studio turns a rectangle around its upper left corner.
        ring = turned([(px * scale_x, py * scale_y) for px, py in flat], (x * scale_x, y * scale_y), angle)
    return [(px / scale_x, py / scale_y) for px, py in ring]
