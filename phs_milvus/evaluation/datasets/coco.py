"""COCO instances JSON: boxes, polygons, run lengths (compressed or not), iscrowd."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import PromptError
from phs_milvus.evaluation.datasets.model import (
    AnnotationError,
    Dataset,
    Instance,
    LabelledImage,
    corners,
    read_json,
    required,
    there,
)
from phs_milvus.pointing.prompts import Mask, Polygon, Prompt

_NUMBER = (int, float)


def read(path: Path, images: Path | None) -> Dataset:
    """Images lie in `images`, else beside the JSON, else in ../<split> or ../images, as COCO is unpacked."""
    root = read_json(path)
    labels = {
        required(category, "id", int, path, f"category {index}"): required(
            category, "name", str, path, f"category {index}"
        )
        for index, category in enumerate(required(root, "categories", list, path, ""))
    }
    files: dict[int, str] = {}
    for index, record in enumerate(required(root, "images", list, path, "")):
        files[required(record, "id", int, path, f"image {index}")] = required(
            record, "file_name", str, path, f"image {index}"
        )
    instances: dict[int, list[Instance]] = defaultdict(list)
    for index, record in enumerate(required(root, "annotations", list, path, "")):
        where = f"annotation {record.get('id', index) if isinstance(record, dict) else index}"
        image = required(record, "image_id", int, path, where)
        if image not in files:
            raise AnnotationError(path, where, "image_id", f"names no image of this file: {image}")
        instances[image].append(_instance(record, labels, path, where))
    folder = images or _folder(path, list(files.values()))
    found = [
        LabelledImage(name, folder / name, tuple(instances[number]))
        for number, name in sorted(files.items(), key=lambda item: item[1])
    ]
    return there(path.stem, found)


def _instance(record: dict[str, Any], labels: dict[int, str], path: Path, where: str) -> Instance:
    category = required(record, "category_id", int, path, where)
    if category not in labels:
        raise AnnotationError(path, where, "category_id", f"names no category of this file: {category}")
    bbox = required(record, "bbox", list, path, where)
    if len(bbox) != 4 or not all(isinstance(value, _NUMBER) for value in bbox):
        raise AnnotationError(path, where, "bbox", f"is not [x, y, width, height]: {bbox!r:.60}")
    x, y, width, height = bbox
    # COCO has boxes of no width, which are degenerate rather than malformed: a pixel stands for them.
    box = corners((x, y, x + max(width, 1), y + max(height, 1)), path, where, "bbox")
    segmentation = record.get("segmentation")
    return Instance(
        label=labels[category],
        box=box,
        is_query=record.get("iscrowd", 0) == 0,
        segment=partial(_segment, segmentation, path, where) if segmentation else None,
    )


def _segment(segmentation: Any, path: Path, where: str) -> Prompt:
    """Polygons as [x0, y0, x1, y1, ...] lists, or a run-length dict, whose numbers are checked when it is drawn."""
    if isinstance(segmentation, dict):
        return Mask(segmentation)
    try:
        return [Polygon(list(zip(flat[0::2], flat[1::2], strict=True))) for flat in segmentation]
    except (TypeError, ValueError, PromptError) as error:
        raise AnnotationError(path, where, "segmentation", str(error)) from error


def _folder(path: Path, names: Sequence[str]) -> Path:
    """The usual place that holds most of the images: downloads are often partial."""
    split = path.stem.rpartition("_")[2]
    places = [path.parent, path.parent / "images", path.parent.parent / split, path.parent.parent / "images"]
    places.append(path.parent.parent / "images" / split)
    counts = [sum((place / name).is_file() for name in names) for place in places]
    if any(counts):
        return places[counts.index(max(counts))]
    raise AnnotationError(
        path,
        "image 0",
        "file_name",
        f"{names[0] if names else 'nothing'} is in none of the usual places; give the images' folder",
    )
