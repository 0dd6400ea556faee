"""Visual Genome: objects.json (boxes and names) and image_data.json (which images there are)."""

from __future__ import annotations

from pathlib import Path

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


def read(path: Path, images: Path | None) -> Dataset:
    """Labels are the first name of each object, lower case; images are <id>.jpg in `images`, VG_100K or VG_100K_2."""
    folder = path if path.is_dir() else path.parent
    data, objects = folder / "image_data.json", folder / "objects.json"
    known = {required(record, "image_id", int, data, f"record {index}") for index, record in enumerate(_list(data))}
    places = [images] if images else [folder / "VG_100K", folder / "VG_100K_2", folder]
    found = []
    for index, record in enumerate(_list(objects)):
        number = required(record, "image_id", int, objects, f"record {index}")
        if number not in known:
            raise AnnotationError(objects, f"record {index}", "image_id", f"{number} is not in {data.name}")
        candidates = [place / f"{number}.jpg" for place in places]
        file = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
        instances = [
            _instance(entry, objects, f"record {index}, object {position}")
            for position, entry in enumerate(required(record, "objects", list, objects, f"record {index}"))
        ]
        found.append(LabelledImage(str(number), file, tuple(instances)))
    return there("visual-genome", sorted(found, key=lambda image: int(image.id)))


def _instance(entry: dict, file: Path, where: str) -> Instance:
    names = required(entry, "names", list, file, where)
    if not names or not isinstance(names[0], str):
        raise AnnotationError(file, where, "names", f"is {names!r:.60}")
    x, y, width, height = (required(entry, field, (int, float), file, where) for field in ("x", "y", "w", "h"))
    # Some boxes have no width: a pixel stands for them.
    box = corners((x, y, x + max(width, 1), y + max(height, 1)), file, where, "x, y, w, h")
    return Instance(names[0].strip().lower(), box)


def _list(file: Path) -> list:
    value = read_json(file)
    if not isinstance(value, list):
        raise AnnotationError(file, "", "file", f"is a JSON {type(value).__name__}, not a list")
    return value
