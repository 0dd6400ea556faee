"""Visual Genome: objects.json (boxes and names) and image_data.json (which images there are, and how large)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Source,
    from_width_and_height,
    key,
    label_of,
    required,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_json


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """Labels are the first name of each object, lower case; images are <id>.jpg in `images`, VG_100K or VG_100K_2."""
    folder = path if path.is_dir() else path.parent
    data, objects = folder / "image_data.json", folder / "objects.json"
    known = {}
    for index, record in enumerate(_list(data)):
        with findings.skipping():
            number = key(record, "image_id", data, f"record {index}")
            known[number] = size_of(record.get("width"), record.get("height"))
    records = []
    for index, record in enumerate(_list(objects)):
        with findings.skipping():
            number = key(record, "image_id", objects, f"record {index}")
            if number not in known:
                raise AnnotationError(objects, f"record {index}", "image_id", f"{number:.60} is not in {data.name}")
            entries = _objects(required(record, "objects", list, objects, f"record {index}"), index, objects, findings)
            records.append(ImageRecord(objects, (f"{number}.jpg",), known[number], entries, id=number))
    records.sort(key=lambda record: (len(record.id or ""), record.id))  # numbers in their order
    places = [images] if images else [folder / "VG_100K", folder / "VG_100K_2", folder / "images", folder]
    return Source("visual-genome", records, places)


def _objects(entries: list[Any], record: int, file: Path, findings: Findings) -> list[ObjectRecord]:
    found = []
    for position, entry in enumerate(entries):
        with findings.skipping():
            where = f"record {record}, object {position}"
            names = required(entry, "names", list, file, where)
            label = label_of(names[0] if names else None, file, where, "names")
            sides = [required(entry, side, (int, float, str), file, where) for side in ("x", "y", "w", "h")]
            box, reversed_ = from_width_and_height(sides, file, where, "x, y, w, h")
            found.append(ObjectRecord(where, label.lower(), box, reversed=reversed_))
    return found


def _list(file: Path) -> list[Any]:
    value = read_json(file)
    if not isinstance(value, list):
        raise AnnotationError(file, "", "file", f"is a JSON {type(value).__name__}, not a list")
    return value
