"""Ultralytics YOLO: a text file beside or parallel to each image, boxes by their centres, polygons, all as shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.places import PICTURES
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
)
from phs_milvus.evaluation.datasets.text import check_utf8, is_folder, read_lines, visible

_NOT_LABELS = ("classes.txt", "obj.names", "predefined_classes.txt", "notes.txt", "train.txt", "val.txt", "test.txt")
_SLACK = 0.01  # by which rounding may leave 0..1


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """`path` is data.yaml or the folder that holds it, or one with images/ and labels/, or labels beside images.

    All splits are read. An image without a label file, or with an empty one, holds no object, as in training.
    """
    file = path if path.is_file() else next((f for f in sorted(path.glob("*.y*ml"))), None)
    root = path if path.is_dir() else path.parent
    described = _yaml(file) if file else {}
    names = _names(described.get("names")) or _listed_names(root)
    keypoints = "kpt_shape" in described
    if images is not None:
        beside = _labels_of(images)
        folders = [(images, beside if any(beside.glob("*.txt")) else _labels_folder(root))]
    else:
        folders = [(folder, _labels_of(folder)) for folder in _image_folders(root, described)]
    records = []
    for folder, labels in folders:
        for stem, image in _pairs(folder, labels):
            text = labels / f"{stem}.txt"
            objects = list(_objects(text, names, keypoints, findings)) if text.is_file() else []
            wanted = str(image or (folder / stem).resolve())
            records.append(ImageRecord(text, (wanted,), None, objects, id=_id(folder / stem, root)))
    return Source(root.name, records, [root], 1.0)


def _objects(file: Path, names: dict[int, str], keypoints: bool, findings: Findings) -> Iterator[ObjectRecord]:
    for number, line in enumerate(read_lines(file), start=1):
        if line.strip():
            with findings.skipping():
                check_utf8(line, file, f"line {number}")
                yield _object(line.split(), names, keypoints, file, f"line {number}")


def _object(fields: list[str], names: dict[int, str], keypoints: bool, file: Path, where: str) -> ObjectRecord:
    """class cx cy w h, perhaps with a confidence or key points; or class x y x y x y ..., a polygon."""
    try:
        index = int(fields[0])
        label = label_of(names[index] if names else index, file, where, "class")
    except (ValueError, KeyError):
        raise AnnotationError(file, where, "class", f"{fields[0]!r:.40} names none of {len(names)} classes") from None
    values = numbers(fields[1:], len(fields) - 1, file, where, "coordinates")
    if len(values) < 4:
        raise AnnotationError(
            file, where, "coordinates", f"are {len(values)} numbers; a box has 4, a polygon 6 or more"
        )
    if keypoints or len(values) in (4, 5):
        x, y, width, height = values[:4]
        _check_shares((x, y, width, height), file, where)
        return ObjectRecord(
            f"{file.name}, {where}",
            label,
            corners((x - width / 2, y - height / 2, x + width / 2, y + height / 2), file, where, "box"),
        )
    if len(values) % 2:
        raise AnnotationError(file, where, "polygon", f"has {len(values)} numbers, which is not pairs of x and y")
    _check_shares(values, file, where)
    ring = list(zip(values[0::2], values[1::2], strict=True))
    return ObjectRecord(f"{file.name}, {where}", label, around([ring]), outline=polygons([ring]))


def _check_shares(values: Sequence[float], file: Path, where: str) -> None:
    if min(values) < -_SLACK or max(values) > 1 + _SLACK:
        shown = " ".join(f"{value:g}" for value in values[:6])
        raise AnnotationError(file, where, "coordinates", f"{shown} are no shares of the image (0 to 1), as YOLO's are")


# --- where things are -----------------------------------------------------------------------------------------------


def _yaml(file: Path) -> dict[str, Any]:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise InvalidInput("reading data.yaml needs PyYAML: pip install 'phs-milvus[eval]'", "dataset") from None
    try:
        value = yaml.safe_load("\n".join(read_lines(file)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise AnnotationError(file, "", "file", f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise AnnotationError(file, "", "file", "is no YAML mapping")
    return value


def _names(value: Any) -> dict[int, str]:
    """Both forms: a list, or a mapping of numbers."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {int(index): str(name) for index, name in pairs if str(index).isdigit()}


def _listed_names(root: Path) -> dict[int, str]:
    for folder in (root, root / "labels", root / "data"):
        for name in ("classes.txt", "obj.names", "predefined_classes.txt"):
            if (folder / name).is_file():
                return dict(enumerate(line.strip() for line in read_lines(folder / name) if line.strip()))
    return {}


def _image_folders(root: Path, described: dict[str, Any]) -> list[Path]:
    """The folders of all splits. Roboflow writes ../train/images where train/images is meant."""
    base = Path(str(described.get("path") or "."))
    folders = []
    for split in ("train", "val", "valid", "test"):
        entries = described.get(split)
        for entry in entries if isinstance(entries, list) else [entries] if entries else []:
            inner = str(entry).replace("\\", "/")
            tries = [root / base / inner, root / inner, root / inner.removeprefix("../"), root / Path(inner).name]
            folders += [next((one for one in tries if is_folder(one)), None)]
    found = [folder for folder in folders if folder is not None]
    if not found:
        inside = sorted({file.parent for file in visible(root, "*") if file.suffix.lower() in PICTURES})
        found = inside or [root / "images"]
    return list(dict.fromkeys(folder.resolve() for folder in found))


def _labels_of(folder: Path) -> Path:
    """The last "images" in the path becomes "labels", as in Ultralytics; without one they lie together."""
    parts = list(folder.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            labels = Path(*parts[:place], "labels", *parts[place + 1 :])
            return labels if labels.is_dir() else folder
    return folder


def _labels_folder(root: Path) -> Path:
    return root / "labels" if (root / "labels").is_dir() else root


def _pairs(folder: Path, labels: Path) -> list[tuple[str, Path | None]]:
    """Stems, relative to the folders, of images and of label files, each with its image where there is one."""
    images = {
        file.relative_to(folder).with_suffix("").as_posix(): file
        for file in (visible(folder, "*") if folder.is_dir() else ())
        if file.suffix.lower() in PICTURES
    }
    texts = {
        file.relative_to(labels).with_suffix("").as_posix()
        for file in (visible(labels, "*.txt") if labels.is_dir() else ())
        if file.name not in _NOT_LABELS
    }
    return [(stem, images.get(stem)) for stem in sorted({*images, *texts})]


def _id(stem: Path, root: Path) -> str:
    try:
        return stem.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return stem.as_posix()
