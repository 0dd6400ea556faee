"""Which format a path holds, told by its names and by the first of its contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets.model import AnnotationError
from phs_milvus.evaluation.datasets.text import read_json, read_lines, read_xml, visible

# In a folder: the file that says what it is, whatever else lies there; the first that is there counts.
_TELLING = (
    ("objects.json", "visual-genome"),
    ("samples.json", "fiftyone"),
    ("_annotations.coco.json", "coco"),
    ("_annotations.csv", "table"),
    ("annotations.xml", "cvat"),
)
_ONE_FILE = ("coco", "table", "label-studio")
_TRIED = 5  # files of a kind, some of which may be broken
_SPLITS = ("train", "valid", "val", "test")


def detect(path: Path, wanted: str | None = None) -> tuple[str, Path]:
    """The format's name, and the file or folder to read.

    Args:
        wanted: the format that the user named; a folder may still hold the one file to read.

    Raises:
        InvalidInput: it cannot be told; the message says what was looked for, or between which files to choose.
    """
    if wanted is None:
        return _folder(path) if path.is_dir() else (_file(path), path)
    if path.is_dir() and wanted in _ONE_FILE:
        format, file = _folder(path)
        return wanted, file if format == wanted else path
    return wanted, path


def _folder(path: Path) -> tuple[str, Path]:
    if (path / "Annotations").is_dir() and not any((path / "Annotations").glob("*.json")):  # as COCO's on a Mac
        return "voc", path
    for name, format in _TELLING:
        if (path / name).is_file():
            return format, path if format in ("visual-genome", "fiftyone", "cvat") else path / name
    if any((path / split / name).is_file() for split in _SPLITS for name, _ in _TELLING):
        found = [split for split in _SPLITS if (path / split).is_dir()]
        raise InvalidInput(f"{path} holds the splits {', '.join(found)}; give one of them", "dataset")
    if _is_yolo(path):
        return "yolo", path
    for pattern, format in (("*.xml", "voc"), ("*.json", "labelme")):
        if next(filter(None, (_try(file) for file in visible(path, pattern)[:_TRIED])), None) == format:
            return format, path
    candidates = [file for file in _annotation_files(path) if _try(file)]
    if len(candidates) == 1:
        return _file(candidates[0]), candidates[0]
    if candidates:
        names = ", ".join(file.relative_to(path).as_posix() for file in candidates[:5])
        raise InvalidInput(f"{path} holds several annotation files ({names}, ...); give one of them", "dataset")
    raise InvalidInput(
        f"{path} holds no annotations that are known: neither a VOC folder (XML files), nor a Visual Genome one "
        "(objects.json), COCO, YOLO, LabelMe, CVAT, Label Studio, FiftyOne or CSV files",
        "dataset",
    )


def _annotation_files(path: Path) -> list[Path]:
    places = (path, path / "annotations")
    return [
        file
        for place in places
        for pattern in ("*.json", "*.csv", "*.jsonl", "*.tsv", "*.xml")
        for file in sorted(place.glob(pattern))
        if not file.name.startswith(".")
    ]


def _is_yolo(path: Path) -> bool:
    """By a data.yaml with names, a list of classes, or text files in labels/."""
    described = any("names:" in "\n".join(read_lines(file)) for file in path.glob("*.y*ml"))
    listed = any((path / name).is_file() for name in ("classes.txt", "obj.names", "predefined_classes.txt"))
    return described or listed or bool(visible(path / "labels", "*.txt"))


def _try(file: Path) -> str | None:
    try:
        return _file(file)
    except InvalidInput:
        return None


def _file(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return "table"
    if suffix in (".yaml", ".yml"):
        return "yolo"
    if suffix == ".xml":
        return "cvat" if read_xml(path).tag == "annotations" else "voc"
    if suffix == ".json":
        return "visual-genome" if path.name == "objects.json" else _json(read_json(path), path)
    raise InvalidInput(f"cannot tell the format of {path}; name it with --format", "format")


def _json(value: Any, path: Path) -> str:
    if isinstance(value, list):
        first = next((entry for entry in value if isinstance(entry, dict)), {})
        if "bbox" in first and "score" in first:
            return "coco"  # whose reader says that these are results
        return "label-studio"
    if isinstance(value, dict):
        if "samples" in value or ("labels" in value and "images" not in value):
            return "fiftyone"
        if "shapes" in value:
            return "labelme"
        if "_via_img_metadata" in value or "_via_settings" in value:
            raise AnnotationError(path, "", "file", "is a project of the VGG annotator; export it as COCO")
        return "coco"
    raise AnnotationError(path, "", "file", f"is a JSON {type(value).__name__}, which no format is")
