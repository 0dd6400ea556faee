"""A plain table of (image, x0, y0, x1, y1, label), one object a row: CSV with a header, or JSON lines."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phs_milvus.evaluation.datasets.model import AnnotationError, Dataset, Instance, LabelledImage, corners, required

_BOX = ("x0", "y0", "x1", "y1")


def read(path: Path, images: Path | None) -> Dataset:
    """Image paths are relative to `images`, else to the table's folder. A row without a box adds an image only.

    Raises:
        AnnotationError: also where an image file is missing, since the table is the user's own.
    """
    folder = images or path.parent
    rows = _json_lines(path) if path.suffix.lower() == ".jsonl" else _csv(path)
    instances: dict[str, list[Instance]] = defaultdict(list)
    for line, row in rows:
        where = f"line {line}"
        name = required(row, "image", str, path, where)
        objects = instances[name]
        if not (folder / name).is_file():
            raise AnnotationError(path, where, "image", f"no file {folder / name}")
        if any(row.get(side) not in (None, "") for side in _BOX):
            box = corners([row.get(side) for side in _BOX], path, where, ", ".join(_BOX))
            label = required(row, "label", str, path, where).strip()
            if not label:
                raise AnnotationError(path, where, "label", "is empty")
            objects.append(Instance(label, box))
    return Dataset(
        path.stem, tuple(LabelledImage(name, folder / name, tuple(instances[name])) for name in sorted(instances))
    )


def _csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in ("image", *_BOX, "label") if name not in (reader.fieldnames or ())]
            if missing:
                raise AnnotationError(path, "line 1", "header", f"lacks {', '.join(missing)}")
            for row in reader:
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise AnnotationError(path, "", "file", f"is not CSV: {error}") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # As bytes, so that text in another encoding is an error of the line it is in.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise AnnotationError(path, f"line {number}", "line", f"is not UTF-8: {error}") from error
                except ValueError as error:
                    raise AnnotationError(path, f"line {number}", "line", f"is not JSON: {error}") from error
