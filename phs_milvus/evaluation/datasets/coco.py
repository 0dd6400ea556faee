"""COCO instances JSON, of any tool: boxes, polygons, run lengths (compressed or not), iscrowd."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import PromptError
from phs_milvus.evaluation.datasets.frames import Frame
from phs_milvus.evaluation.datasets.model import AnnotationError, Corners
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Source,
    around,
    from_width_and_height,
    key,
    label_of,
    required,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_json
from phs_milvus.pointing.masks import read_mask
from phs_milvus.pointing.prompts import Mask, Polygon, Prompt

_FALSE = ("", "0", "false", "no", "none", "null", "0.0")


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """Images lie in `images`, else beside the JSON or where COCO, FiftyOne or Label Studio put them."""
    root = read_json(path)
    if isinstance(root, list):
        raise AnnotationError(path, "", "file", "holds COCO results (a list), not the instances they are results for")
    labels = dict(_categories(root, path, findings))
    objects: defaultdict[str, list[ObjectRecord]] = defaultdict(list)
    sizes = {
        str(record.get("id")).strip(): record
        for record in required(root, "images", list, path, "")
        if isinstance(record, dict)
    }
    for index, record in enumerate(required(root, "annotations", list, path, "")):
        with findings.skipping():
            where = f"annotation {record.get('id', index) if isinstance(record, dict) else index}"
            image = key(record, "image_id", path, where)
            if image not in sizes:
                raise AnnotationError(path, where, "image_id", f"names no image of this file: {image:.60}")
            objects[image].append(_object(record, labels, path, where))
    records = []
    for index, record in enumerate(root["images"]):
        with findings.skipping():
            number = key(record, "id", path, f"image {index}")
            name = required(record, "file_name", str, path, f"image {index}")
            size = size_of(record.get("width"), record.get("height"))
            records.append(ImageRecord(path, (name,), size, objects.pop(number, [])))
    return Source(path.stem, sorted(records, key=lambda record: record.names[0]), [images] if images else places(path))


def _categories(root: Any, path: Path, findings: Findings) -> Iterator[tuple[str, str]]:
    for index, record in enumerate(required(root, "categories", list, path, "")):
        with findings.skipping():
            where = f"category {index}"
            number = key(record, "id", path, where)
            yield number, label_of(required(record, "name", (str, int), path, where), path, where, "name")


def _object(record: dict[str, Any], labels: dict[str, str], path: Path, where: str) -> ObjectRecord:
    category = key(record, "category_id", path, where)
    if category not in labels:
        raise AnnotationError(path, where, "category_id", f"names no category of this file: {category:.60}")
    segmentation = record.get("segmentation")
    outline = partial(_outline, segmentation, path, where) if segmentation else None
    box, reversed_ = _box(record, segmentation, path, where)
    # Crowds have uncertain borders: no query, but their class is there, as in COCO's own evaluation.
    crowd = str(record.get("iscrowd")).strip().lower() not in _FALSE
    return ObjectRecord(where, labels[category], box, not crowd, outline, reversed_)


def _box(record: dict[str, Any], segmentation: Any, path: Path, where: str) -> tuple[Corners, bool]:
    """The bbox; where a file has none at all, the box around its polygons."""
    if "bbox" not in record and isinstance(segmentation, list) and segmentation:
        return around(_rings(segmentation, path, where)), False
    bbox = required(record, "bbox", list, path, where)
    if len(bbox) != 4:
        raise AnnotationError(path, where, "bbox", f"is not [x, y, width, height]: {bbox!r:.60}")
    return from_width_and_height(bbox, path, where, "bbox")


def _outline(segmentation: Any, path: Path, where: str, frame: Frame) -> Prompt:
    """Polygons as [x0, y0, x1, y1, ...] lists, or a run-length dict, whose numbers are checked when it is drawn."""
    if isinstance(segmentation, dict):
        if frame.orientation == 1 and frame.size == frame.upright:
            return Mask(segmentation)
        width, height = round(frame.size[0]), round(frame.size[1])
        return Mask(frame.mask(read_mask(segmentation, width, height)))
    try:
        return [Polygon([frame.point(x, y) for x, y in ring]) for ring in _rings(segmentation, path, where)]
    except PromptError as error:
        raise AnnotationError(path, where, "segmentation", str(error)) from error


def _rings(segmentation: Any, path: Path, where: str) -> list[list[tuple[float, float]]]:
    """One polygon may also stand there without the outer list."""
    try:
        flats = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
        return [[(float(x), float(y)) for x, y in zip(flat[0::2], flat[1::2], strict=True)] for flat in flats if flat]
    except (TypeError, ValueError, KeyError) as error:
        raise AnnotationError(path, where, "segmentation", f"is no list of polygons: {error}") from error


def places(path: Path) -> list[Path]:
    """Where tools put the images of an annotation file: beside it, in images/ or data/, or in a folder of its split."""
    folder, split = path.parent, path.stem.rpartition("_")[2]
    above = folder.parent
    return [
        folder,
        *(folder / name for name in ("images", "data", "JPEGImages", split)),
        *(above / name for name in (split, "images", "data", "JPEGImages", f"images/{split}", f"images/{folder.name}")),
        above,
    ]
