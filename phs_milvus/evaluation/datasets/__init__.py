"""Labelled images in the forms people have them: PASCAL VOC, COCO, Visual Genome, CSV and JSON lines."""

from __future__ import annotations

from pathlib import Path

from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.evaluation.datasets import coco, tables, visual_genome, voc
from phs_milvus.evaluation.datasets.model import AnnotationError, Dataset, Instance, LabelledImage

__all__ = ["FORMATS", "AnnotationError", "Dataset", "Instance", "LabelledImage", "load"]

_READERS = {"voc": voc.read, "coco": coco.read, "visual-genome": visual_genome.read, "table": tables.read}
FORMATS = tuple(_READERS)


def load(path: str | Path, *, images: str | Path | None = None, format: str | None = None) -> Dataset:
    """Reads a labelled set of images.

    Args:
        path: a VOC folder (Annotations/, JPEGImages/), a COCO instances JSON, a folder with Visual Genome's
            objects.json and image_data.json, or a CSV or JSON-lines file of (image, x0, y0, x1, y1, label).
        images: the folder of the image files, where it is not beside the annotations.
        format: one of FORMATS; None: seen from the path.

    Raises:
        AnnotationError: a malformed file, with the file, the record and the field.
        InvalidInput: nothing there, or a form that cannot be told.
    """
    path = Path(path)
    if not _readable(path):
        raise InvalidInput(f"{shown(path)} does not exist, or is neither a file nor a folder", "dataset")
    name = format or _guess(path)
    if name not in _READERS:
        raise InvalidInput(f"format '{name}' is none of {', '.join(FORMATS)}", "format")
    dataset = _READERS[name](path, None if images is None else Path(images))
    if not dataset.images:
        raise InvalidInput(f"{path} describes no image", "dataset")
    return dataset


def _readable(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()  # a device may have no end
    except OSError:  # a name that is too long, say
        return False


def _guess(path: Path) -> str:
    if path.is_dir():
        if (path / "Annotations").is_dir():
            return "voc"
        if (path / "objects.json").is_file():
            return "visual-genome"
        raise InvalidInput(
            f"{path} is neither a VOC folder (Annotations/) nor a Visual Genome one (objects.json); "
            "for COCO give the path of its instances JSON",
            "dataset",
        )
    if path.suffix.lower() in (".csv", ".jsonl"):
        return "table"
    if path.suffix.lower() == ".json":
        return "visual-genome" if path.name == "objects.json" else "coco"
    raise InvalidInput(f"cannot tell the format of {path}; pass one of {', '.join(FORMATS)}", "format")
