"""FiftyOne's own exports: samples.json of a whole dataset, or labels.json of image detections; boxes as shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets.model import AnnotationError, Corners
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Source,
    around,
    corners,
    label_of,
    numbers,
    polygons,
    required,
    ring_of,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_json

_KINDS = ("Detections", "Polylines")


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """`path` is the export's folder or its JSON file; images lie in data/ or where the samples say."""
    root = path if path.is_dir() else path.parent
    file = path if path.is_file() else root / ("samples.json" if (root / "samples.json").is_file() else "labels.json")
    value = read_json(file)
    if isinstance(value, dict) and "samples" in value:
        records = _samples(value, file, findings)
    else:
        records = _detections(value, file, findings)
    places = [images] if images else [root, root / "data", root / "images", root.parent]
    return Source(root.name, sorted(records, key=lambda record: record.names[0]), places, 1)


def _samples(value: dict[str, Any], file: Path, findings: Findings) -> list[ImageRecord]:
    samples = required(value, "samples", list, file, "")
    name = _field(samples)
    records = []
    for index, sample in enumerate(samples):
        with findings.skipping():
            where = f"sample {index}"
            path = required(sample, "filepath", str, file, where)
            held = sample.get(name) if name else None
            entries = (held.get("detections") or held.get("polylines") or []) if isinstance(held, dict) else []
            metadata = sample.get("metadata")
            size = size_of(metadata.get("width"), metadata.get("height")) if isinstance(metadata, dict) else None
            records.append(ImageRecord(file, (path,), size, _objects(entries, None, file, path, findings)))
    return records


def _field(samples: list[Any]) -> str | None:
    """The field that holds the labels: ground_truth, or the only one of its kind.

    Raises:
        InvalidInput: several, perhaps labels and predictions.
    """
    fields = {
        name
        for sample in samples
        if isinstance(sample, dict)
        for name, value in sample.items()
        if isinstance(value, dict) and value.get("_cls") in _KINDS
    }
    if "ground_truth" in fields or not fields:
        return "ground_truth"
    if len(fields) > 1:
        raise InvalidInput(
            f"samples.json holds labels in several fields ({', '.join(sorted(fields))}); export with label_field=ONE",
            "dataset",
        )
    return fields.pop()


def _detections(value: Any, file: Path, findings: Findings) -> list[ImageRecord]:
    """{"classes": [...], "labels": {"stem": [...]}}: FiftyOneImageDetectionDataset."""
    labels = required(value, "labels", dict, file, "")
    classes = value.get("classes")
    return [
        ImageRecord(
            file,
            (stem,),
            None,
            _objects(entries or [], classes if isinstance(classes, list) else None, file, stem, findings),
        )
        for stem, entries in labels.items()
    ]


def _objects(entries: Any, classes: list[Any] | None, file: Path, image: str, findings: Findings) -> list[ObjectRecord]:
    objects = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        with findings.skipping():
            objects.append(_object(entry, classes, file, f"{image}, object {number}"))
    return objects


def _object(entry: Any, classes: list[Any] | None, file: Path, where: str) -> ObjectRecord:
    value = required(entry, "label", (str, int), file, where)
    if classes is not None and isinstance(value, int):
        if not 0 <= value < len(classes):
            raise AnnotationError(file, where, "label", f"{value} names none of {len(classes)} classes")
        value = classes[value]
    label = label_of(value, file, where, "label")
    crowd = bool(entry.get("iscrowd"))
    if "points" in entry:
        rings = [ring_of(ring, file, where) for ring in required(entry, "points", list, file, where)]
        if not rings:
            raise AnnotationError(file, where, "points", "is empty")
        return ObjectRecord(where, label, around(rings), not crowd, polygons(rings))
    return ObjectRecord(where, label, _box(entry, file, where), not crowd)


def _box(entry: Any, file: Path, where: str) -> Corners:
    x, y, width, height = numbers(required(entry, "bounding_box", list, file, where), 4, file, where, "bounding_box")
    if max(abs(x), abs(y), abs(width), abs(height)) > 2:
        raise AnnotationError(
            file, where, "bounding_box", f"{x:g}, {y:g}, {width:g}, {height:g} is no share of the image"
        )
    return corners((x, y, x + width, y + height), file, where, "bounding_box")
