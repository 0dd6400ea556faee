"""One object a row: CSV, TSV or JSON lines, with the column names of the tools that write them.

Roboflow and TensorFlow (filename, width, height, class, xmin, ymin, xmax, ymax), Keras (path, x1, y1, x2, y2, class,
without a header), Open Images, makesense.ai, Excel's semicolons and decimal commas.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phs_milvus.evaluation.datasets.coco import places
from phs_milvus.evaluation.datasets.model import AnnotationError, Corners
from phs_milvus.evaluation.datasets.records import (
    Findings,
    ImageRecord,
    ObjectRecord,
    Source,
    corners,
    from_width_and_height,
    label_of,
    numbers,
    size_of,
)
from phs_milvus.evaluation.datasets.text import check_utf8, read_lines

OURS = ("image", "x0", "y0", "x1", "y1", "label")
_IMAGE = ("image", "filename", "imagename", "imagepath", "filepath", "path", "file", "img", "imageid", "image_id")
_LABEL = ("label", "class", "classname", "labelname", "name", "category", "categoryname", "species")
# Names as they come, without case and separators: corners, x y width height, and centres.
_BOXES: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "corners": (
        ("x0", "y0", "x1", "y1"),
        ("xmin", "ymin", "xmax", "ymax"),
        ("x1", "y1", "x2", "y2"),
        ("left", "top", "right", "bottom"),
        ("bboxx1", "bboxy1", "bboxx2", "bboxy2"),
    ),
    "size": (
        ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
        ("bboxx", "bboxy", "bboxw", "bboxh"),
        ("x", "y", "w", "h"),
        ("x", "y", "width", "height"),
        ("left", "top", "width", "height"),
    ),
    "centre": (
        ("xcenter", "ycenter", "width", "height"),
        ("xcentre", "ycentre", "width", "height"),
        ("centerx", "centery", "width", "height"),
        ("xcenter", "ycenter", "w", "h"),
        ("cx", "cy", "w", "h"),
        ("cx", "cy", "width", "height"),
    ),
}
_SIZES = (("imagewidth", "imageheight"), ("imgwidth", "imgheight"), ("width", "height"))


@dataclass(frozen=True)
class _Columns:
    """Which column holds what; `kind` is a key of _BOXES."""

    image: str
    label: str
    kind: str
    box: tuple[str, ...]
    size: tuple[str, ...]


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """Image paths are relative to `images`, else to the table's folder. A row without a box adds an image only."""
    json_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    rows, unit = (_json_lines(path, findings), None) if json_lines else _csv(path, findings)
    objects: dict[str, list[ObjectRecord]] = {}
    sizes: dict[str, tuple[float, float] | None] = {}
    for where, row, columns in rows:
        with findings.skipping():
            name = row.get(columns.image)
            if not isinstance(name, str | int) or not str(name).strip():
                raise AnnotationError(path, where, columns.image, "is missing")
            found = objects.setdefault(str(name).strip(), [])
            sizes[str(name).strip()] = size_of(*(row.get(side) for side in columns.size)) if columns.size else None
            if any(row.get(side) not in (None, "") for side in columns.box):
                found.append(_object(row, columns, path, where))
    records = [ImageRecord(path, (name,), sizes[name], objects[name]) for name in sorted(objects)]
    return Source(path.stem, records, [images] if images else places(path), unit)


def _object(row: Mapping[str, Any], columns: _Columns, path: Path, where: str) -> ObjectRecord:
    names = ", ".join(columns.box)
    box, reversed_ = _box([row.get(side) for side in columns.box], columns.kind, path, where, names)
    label = row.get(columns.label)
    if label in (None, ""):
        raise AnnotationError(path, where, columns.label, "is empty")
    group = str(row.get("isgroupof", "")).strip() == "1"  # Open Images' crowds
    return ObjectRecord(where, label_of(label, path, where, columns.label), box, not group, reversed=reversed_)


def _box(values: list[Any], kind: str, path: Path, where: str, names: str) -> tuple[Corners, bool]:
    if kind == "corners":
        return corners(values, path, where, names), False
    if kind == "size":
        return from_width_and_height(values, path, where, names)
    x, y, width, height = numbers(values, 4, path, where, names)
    return corners((x - width / 2, y - height / 2, x + width / 2, y + height / 2), path, where, names), False


def _csv(path: Path, findings: Findings) -> tuple[Iterator[tuple[str, Mapping[str, Any], _Columns]], float | None]:
    lines = read_lines(path)
    if lines and lines[0].lower().startswith("sep="):  # which Excel takes as a hint
        lines[0] = ""
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    header = lines[start] if lines else ""
    delimiter = max(",;\t|", key=header.count)
    names = [_plain(name) for name in _fields(header, delimiter, path, start + 1)]
    first = start + 1
    if _is_row(names):
        names, first = list(OURS), start  # Keras writes no header
    columns = _columns(names, path, f"line {start + 1}")
    # Open Images writes shares, which its other columns tell it by.
    unit = 1.0 if {"imageid", "labelname", "isgroupof"} <= set(names) else None

    def rows() -> Iterator[tuple[str, Mapping[str, Any], _Columns]]:
        for number, line in enumerate(lines[first:], start=first + 1):
            if line.strip():
                with findings.skipping():
                    yield (
                        f"line {number}",
                        dict(zip(names, _fields(line, delimiter, path, number), strict=False)),
                        columns,
                    )

    return rows(), unit


def _fields(line: str, delimiter: str, path: Path, number: int) -> list[str]:
    """A line at a time, so that a quote that is never closed spoils its own line only."""
    check_utf8(line, path, f"line {number}")
    try:
        fields = next(csv.reader([line], delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise AnnotationError(path, f"line {number}", "line", f"is not CSV: {error}") from error
    if delimiter == ";":
        return [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", field) for field in fields]
    return fields


def _json_lines(path: Path, findings: Findings) -> Iterator[tuple[str, Mapping[str, Any], _Columns]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            with findings.skipping():
                where = f"line {number}"
                check_utf8(line, path, where)
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise AnnotationError(path, where, "line", f"is not JSON: {error}") from error
                if not isinstance(row, dict):
                    raise AnnotationError(path, where, "line", f"is a JSON {type(row).__name__}, not an object")
                plain = {_plain(name): value for name, value in row.items()}
                yield where, plain, _columns(list(plain), path, where, image_only=True)


def _columns(names: list[str], path: Path, where: str, image_only: bool = False) -> _Columns:
    """What the columns are; of several sets of box columns the one that is there in full."""
    image = next((name for name in _IMAGE if name in names), "")
    label = next((name for name in _LABEL if name in names and name != image), "")
    sets = [(kind, box) for kind, boxes in _BOXES.items() for box in boxes]
    kind, box = max(sets, key=lambda item: sum(side in names for side in item[1]))
    lacking = [side for side in box if side not in names] + [
        word for word, name in zip(("label",), (label,), strict=True) if not name
    ]
    boxless = image_only and not any(side in names for side in box)
    if not image or (lacking and not boxless):
        missing = ([] if image else ["image"]) + ([] if boxless else lacking)
        hint = f"; it is {', '.join(names)[:80]}, one object a row is {','.join(OURS)}"
        raise AnnotationError(path, where, "header", f"lacks {', '.join(missing)}{hint}")
    size = next((pair for pair in _SIZES if set(pair) <= set(names) and not set(pair) & set(box)), ())
    return _Columns(image, label, kind, box, size)


def _plain(name: str) -> str:
    return re.sub(r"[\s_.\-]", "", name).casefold()


def _is_row(fields: list[str]) -> bool:
    """Whether a first line is data: a path, four numbers or nothing, and a class."""
    return len(fields) == 6 and all(re.fullmatch(r"\d*", field) for field in fields[1:5])
