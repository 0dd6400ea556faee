"""Labelled images in the forms people have them: COCO, VOC, YOLO, LabelMe, CVAT, Label Studio, FiftyOne, CSV and more.

The readers are our own, a page each. globox (light, kept up) reads boxes of five of these formats, but drops outlines,
iscrowd and difficult, and one bad record ends it; supervision brings SciPy and PyAV and takes boxes as they stand;
pylabel rests since 2023; pycocotools raises KeyError where a file differs from COCO's own: tests compare with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.evaluation.datasets import (
    coco,
    cvat,
    fiftyone,
    label_studio,
    labelme,
    tables,
    visual_genome,
    voc,
    yolo,
)
from phs_milvus.evaluation.datasets.assemble import assemble
from phs_milvus.evaluation.datasets.detect import detect
from phs_milvus.evaluation.datasets.frames import FRAMES
from phs_milvus.evaluation.datasets.model import AnnotationError, Dataset, DatasetWarning, Instance, LabelledImage
from phs_milvus.evaluation.datasets.records import Findings, Source
from phs_milvus.evaluation.datasets.text import read_json

__all__ = ["FORMATS", "AnnotationError", "Dataset", "DatasetWarning", "Instance", "LabelledImage", "load"]

_READERS: dict[str, Callable[[Path, Path | None, Findings], Source]] = {
    "voc": voc.read,
    "coco": coco.read,
    "visual-genome": visual_genome.read,
    "table": tables.read,
    "yolo": yolo.read,
    "labelme": labelme.read,
    "cvat": cvat.read,
    "label-studio": label_studio.read,
    "fiftyone": fiftyone.read,
}
FORMATS = tuple(_READERS)
UNITS = ("pixels", "shares")
# Of formats that do not say themselves what their boxes are in.
_OF_ANY_UNIT = ("coco", "table")


def load(
    path: str | Path,
    *,
    images: str | Path | None = None,
    format: str | None = None,
    boxes: str | None = None,
    frame: str | None = None,
) -> Dataset:
    """Reads a labelled set of images. What was left out, merged or converted is in the Dataset, and a DatasetWarning.

    Args:
        path: the annotation file or folder, as the tool exported it.
        images: the folder of the image files, where it is not beside the annotations.
        format: one of FORMATS; None: told by the path and its contents.
        boxes: "shares" where a COCO file or a table gives boxes from 0 to 1, which neither format can say itself.
        frame: "stored" or "upright": how photos that EXIF turns were labelled, where sizes do not tell.

    Raises:
        AnnotationError: a file that cannot be read at all, with the file and the field.
        InvalidInput: nothing there or usable, a form that cannot be told, or boxes that make no sense in the unit or
            order that the format gives them.
    """
    path = Path(path)
    if not _readable(path):
        raise InvalidInput(f"{shown(path)} does not exist, or is neither a file nor a folder", "dataset")
    if images is not None and not Path(images).is_dir():
        raise InvalidInput(f"{images} is not a folder", "images")
    for value, choices, name in ((format, FORMATS, "format"), (boxes, UNITS, "boxes"), (frame, FRAMES, "frame")):
        if value is not None and value not in choices:
            raise InvalidInput(f"'{value}' is not one of {', '.join(choices)}", name)
    findings = Findings()
    try:
        name, found = detect(path, format)
        source = _READERS[name](found, None if images is None else Path(images), findings)
    finally:
        read_json.cache_clear()
    if boxes is not None:
        if name not in _OF_ANY_UNIT:
            raise InvalidInput(f"{name} files state the unit of their boxes; leave --boxes out", "boxes")
        source = replace(source, unit=1.0 if boxes == "shares" else source.unit)
    dataset = assemble(source, findings, frame or "")
    if dataset.remarks:
        warnings.warn("\n".join(dataset.remarks), DatasetWarning, stacklevel=2)
    return dataset


def _readable(path: Path) -> bool:
    try:
        return path.is_file() or path.is_dir()  # a device may have no end
    except OSError:  # a name that is too long, say
        return False
