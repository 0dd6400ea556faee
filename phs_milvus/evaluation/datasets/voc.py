"""PASCAL VOC 2007 and 2012: Annotations/*.xml, JPEGImages/, and SegmentationObject/*.png where there are masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from phs_milvus.evaluation.datasets.model import AnnotationError, Dataset, Instance, LabelledImage, corners, there
from phs_milvus.pointing.prompts import Mask


def read(path: Path, images: Path | None) -> Dataset:
    """Every annotated image whose file is there. Boxes become 0-based and exclusive."""
    folder = images or path / "JPEGImages"
    files = sorted((path / "Annotations").glob("*.xml"))
    return there(path.name, (_image(file, folder, path / "SegmentationObject") for file in files))


def _image(file: Path, folder: Path, masks: Path) -> LabelledImage:
    # An entity declaration could expand to gigabytes, and no VOC file has one.
    text = file.read_bytes()
    if b"<!ENTITY" in text:
        raise AnnotationError(file, "", "file", "declares XML entities")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise AnnotationError(file, "", "file", f"is not XML: {error}") from error
    name = _text(root, "filename", file, "annotation")
    mask = masks / f"{file.stem}.png"
    instances = []
    for number, element in enumerate(root.iterfind("object")):
        where = f"object {number}"
        box = [_text(element, f"bndbox/{side}", file, where) for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = corners(box, file, where, "bndbox")
        instances.append(
            Instance(
                label=_text(element, "name", file, where),
                # VOC counts pixels from 1, the last one included.
                box=(x0 - 1, y0 - 1, x1, y1),
                is_query=(element.findtext("difficult") or "0").strip() != "1",
                segment=partial(_segment, mask, number, file) if mask.is_file() else None,
            )
        )
    return LabelledImage(file.stem, folder / name, tuple(instances))


def _text(element: ElementTree.Element, path: str, file: Path, where: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise AnnotationError(file, where, path, "is missing or empty")
    return text


def _segment(mask: Path, number: int, file: Path) -> Mask:
    """SegmentationObject holds palette indices: object 0 of the XML is 1, and 255 is the border between objects."""
    with Image.open(mask) as picture:
        inside = np.asarray(picture) == number + 1
    if inside.ndim != 2 or not inside.any():
        raise AnnotationError(mask, f"object {number} of {file.name}", "mask", f"has no pixel with index {number + 1}")
    return Mask(inside)
