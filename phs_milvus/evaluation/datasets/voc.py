"""PASCAL VOC, of any tool: XML in Annotations/ or beside the images; SegmentationObject/*.png where there are masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from phs_milvus.evaluation.datasets.model import AnnotationError, Corners
from phs_milvus.evaluation.datasets.records import (
    Findings,
    FirstPixelBox,
    ImageRecord,
    ObjectRecord,
    Source,
    bitmap,
    corners,
    numbers,
    size_of,
)
from phs_milvus.evaluation.datasets.text import read_xml, visible

_SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(path: Path, images: Path | None, findings: Findings) -> Source:
    """Every annotated image. Boxes become 0-based and exclusive. A file belongs to the image with its stem, whatever
    its <filename> says, which after renaming or on another system is often wrong."""
    root = path if path.is_dir() else path.parent
    annotations = root / "Annotations"
    files = [path] if path.is_file() else visible(annotations if annotations.is_dir() else root, "*.xml")
    records = []
    for file in files:
        with findings.skipping():
            records.append(_image(file, root, findings, images is None))
    places = [root / "JPEGImages", root / "images", root / "Images", root / "data", root, root.parent / "images"]
    return Source(root.name, records, [images] if images else places)


def _image(file: Path, root: Path, findings: Findings, nested: bool) -> ImageRecord:
    element = read_xml(file)
    if element.tag != "annotation":
        raise AnnotationError(file, "", "file", f"is no VOC annotation but <{element.tag}>")
    folder = file.parent.relative_to(root)
    mask = root / folder.parent / "SegmentationObject" / f"{file.stem}.png"
    objects = []
    for number, entry in enumerate(element.iterfind("object")):
        with findings.skipping():
            objects.append(_object(entry, number, file, mask if mask.is_file() else None))
    size = size_of(element.findtext("size/width"), element.findtext("size/height"))
    top = folder.parts[:1] in ((), ("Annotations",))
    image_id = file.stem if top else (folder / file.stem).as_posix()
    # Beside the file or in a folder beside the file's; then anywhere by its stem; and then by its <filename>.
    near = [folder, *(folder.parent / name for name in ("JPEGImages", "images"))] if nested and not top else []
    name = (element.findtext("filename") or "").strip()
    names = [*((place / file.stem).as_posix() for place in near), file.stem, name]
    return ImageRecord(file, tuple(filter(None, names)), size, objects, id=image_id)


def _object(element: ElementTree.Element, number: int, file: Path, mask: Path | None) -> ObjectRecord:
    where = f"object {number}"
    label = _text(element, "name", file, where)
    return ObjectRecord(
        where=where,
        label=label,
        box=_box([_text(element, f"bndbox/{side}", file, where) for side in _SIDES], file, where),
        is_query=(element.findtext("difficult") or "0").strip() != "1",
        outline=bitmap(partial(_inside, mask, number, file)) if mask else None,
    )


def _box(sides: list[str], file: Path, where: str) -> Corners:
    """VOC counts pixels from 1, the last one included, so that xmin = xmax is a box one pixel wide."""
    x0, y0, x1, y1 = numbers(sides, 4, file, where, "bndbox")
    if min(x0, y0) >= 0 and max(x1, y1) <= 1 and x0 < x1 and y0 < y1:
        raise FirstPixelBox(
            file,
            where,
            "bndbox",
            f"{', '.join(sides)} are no pixels; if boxes are shares of the image (0 to 1), write "
            "them as pixels: VOC has no other unit",
        )
    return corners((x0 - 1, y0 - 1, x1, y1), file, where, "bndbox")


def _text(element: ElementTree.Element, path: str, file: Path, where: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise AnnotationError(file, where, path, "is missing or empty")
    return text


def _inside(mask: Path, number: int, file: Path) -> np.ndarray:
    """SegmentationObject holds palette indices: object 0 of the XML is 1, and 255 is the border between objects."""
    try:
        with Image.open(mask) as picture:
            inside = np.asarray(picture) == number + 1
    except (OSError, ValueError) as error:
        raise AnnotationError(mask, f"object {number} of {file.name}", "mask", f"cannot be read: {error}") from error
    if inside.ndim != 2 or not inside.any():
        raise AnnotationError(mask, f"object {number} of {file.name}", "mask", f"has no pixel with index {number + 1}")
    return inside
