"""From what annotation files say to a Dataset: files found, each once, and boxes in pixels of the upright image.

Everything that can go wrong between a label and a picture is decided here, once for all formats. What is certain is
put right and said; what is broken is left out and named; what could mean two things stops with the way out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from phs_milvus.contract.errors import ImageError, InvalidInput, shown
from phs_milvus.evaluation.datasets.frames import AmbiguousFrame, Frame, Picture, frame_of, picture_of
from phs_milvus.evaluation.datasets.model import AnnotationError, Corners, Dataset, Instance, LabelledImage
from phs_milvus.evaluation.datasets.places import Finder, normal
from phs_milvus.evaluation.datasets.plausible import Placed, check_plausible
from phs_milvus.evaluation.datasets.records import Findings, FirstPixelBox, ImageRecord, ObjectRecord, Source


@dataclass
class _File:
    """An image file and every record that leads to it."""

    path: Path
    records: list[ImageRecord] = field(default_factory=list)
    # Names whose folders had to be ignored to find the file, by the path that they led to.
    loose: dict[Path, set[str]] = field(default_factory=dict)


def assemble(source: Source, findings: Findings, told: str = "") -> Dataset:
    """Builds the Dataset of a source.

    Args:
        findings: of the reader; what is found here is added.
        told: "stored" or "upright" where the user has said in which frame photos that EXIF turns were labelled.

    Raises:
        InvalidInput: nothing usable, or boxes that as a whole make no sense as what they are declared to be.
    """
    files, missing = _files(source, findings)
    unreadable: dict[str, str] = {}
    images: list[LabelledImage] = []
    placed: list[Placed] = []
    for file in files:
        image_id = file.records[0].id or normal(file.records[0].names[0])
        if doubtful := [names for names in file.loose.values() if len(names) > 1]:
            names = " and ".join(sorted(doubtful[0])[:2])
            unreadable[image_id] = f"{file.path}: {names} both lead to it; give the folder above theirs as --images"
            continue
        try:
            picture = picture_of(file.path)
        except (ImageError, OSError):
            # `readable` reports it when images are encoded, as it does those that are cut off further down.
            images.append(LabelledImage(image_id, file.path, ()))
            continue
        try:
            instances = _instances(file, picture, source, findings, told, placed)
        except AmbiguousFrame as error:
            unreadable[image_id] = f"{file.path}: {error}"
            continue
        images.append(LabelledImage(image_id, file.path, tuple(instances)))
    check_plausible(placed, findings, shares=source.unit is not None)
    dataset = Dataset(
        source.name, _distinct(images), tuple(missing), unreadable, tuple(findings.skipped), findings.notes
    )
    _check_usable(source, dataset, missing)
    return dataset


def _files(source: Source, findings: Findings) -> tuple[list[_File], dict[str, Path]]:
    """The files there are, each once whatever its spellings and links; and where the missing ones should be, by id."""
    finder = Finder(source.places, [record.names[0] for record in source.records])
    files: dict[tuple[int, int], _File] = {}
    missing: dict[str, Path] = {}
    for record in source.records:
        found = finder.find(record.names)
        if found is None:
            missing[record.id or normal(record.names[0])] = finder.expected(record.names)
            continue
        path, loose = found
        status = path.stat()
        file = files.setdefault((status.st_dev, status.st_ino), _File(path))
        if file.records:
            findings.note(
                "record(s) merged with another one of the same image file",
                f"{record.names[0]} is {file.records[0].names[0]}",
            )
        if loose:
            file.loose.setdefault(path, set()).add(normal(record.names[0]))
        file.records.append(record)
    return list(files.values()), missing


def _instances(
    file: _File, picture: Picture, source: Source, findings: Findings, told: str, placed: list[Placed]
) -> list[Instance]:
    """The objects of all the records of a file, in pixels of the upright image; the same object twice is one."""
    found: dict[tuple[str, Corners], Instance] = {}
    for record in file.records:
        if not record.objects:
            continue  # nothing that could be in another frame
        boxes = [entry.box for entry in record.objects]
        frame = frame_of(picture, record.size, source.unit, boxes, told)
        _say_frame(record, frame, picture, source.unit, findings)
        for entry in record.objects:
            with findings.skipping():
                instance = _instance(entry, record, frame, source.unit, findings, placed)
                found.setdefault((instance.label, instance.box), instance)
    return list(found.values())


def _instance(
    entry: ObjectRecord, record: ImageRecord, frame: Frame, unit: float | None, findings: Findings, placed: list[Placed]
) -> Instance:
    width, height = frame.upright
    # A little more, for shares that were rounded.
    if unit is None and min(entry.box) >= -0.01 and max(entry.box) <= 1.01 and min(width, height) > 1:
        raise FirstPixelBox(record.file, entry.where, "box", _first_pixel(entry.box))
    box = frame.box(entry.box)
    placed.append(Placed(entry.where, box, frame.upright))
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))
    sides = ", ".join(f"{side:g}" for side in box)
    if x1 <= x0 or y1 <= y0:
        raise AnnotationError(record.file, entry.where, "box", f"{sides} is outside the {width}x{height} image")
    clipped = (x0, y0, x1, y1)
    if clipped != box:
        if entry.reversed:
            raise AnnotationError(
                record.file, entry.where, "box", f"has a negative side, and turned round ({sides}) it leaves the image"
            )
        if max(abs(a - b) for a, b in zip(clipped, box, strict=True)) > 1:
            findings.note("box(es) reach beyond their image and were clipped", f"{entry.where}, {sides}")
    elif entry.reversed:
        findings.note("box(es) have a negative width or height and were turned round", f"{entry.where}, {sides}")
    segment = partial(entry.outline, frame) if entry.outline else None
    return Instance(entry.label, clipped, entry.is_query, segment)


def _say_frame(record: ImageRecord, frame: Frame, picture: Picture, unit: float | None, findings: Findings) -> None:
    name = record.names[0]
    seen = picture.stored if frame.orientation != 1 else picture.upright
    if frame.orientation != 1:
        findings.note(
            "image(s) were labelled before EXIF turned them; their labels were turned too",
            f"{name}, stored as {seen[0]}x{seen[1]}",
        )
    if record.size is not None and unit is None and record.size != seen:
        findings.note(
            "image(s) have another size than their labels say; the labels were scaled",
            f"{name}, labelled at {record.size[0]:g}x{record.size[1]:g}, the file is {seen[0]}x{seen[1]}",
        )


def _first_pixel(box: Corners) -> str:
    sides = ", ".join(f"{side:g}" for side in box)
    return f"{sides} lies within the first pixel; if boxes are shares of the image (0 to 1), say --boxes shares"


def _distinct(images: Sequence[LabelledImage]) -> tuple[LabelledImage, ...]:
    """The images with ids that are unique: of equal ones, all but the first say their path."""
    found: dict[str, LabelledImage] = {}
    counts: defaultdict[str, int] = defaultdict(int)
    for image in images:
        counts[image.id] += 1
        unique = image if image.id not in found else replace(image, id=str(image.path))
        found[unique.id] = unique
    return tuple(found.values())


def _check_usable(source: Source, dataset: Dataset, missing: dict[str, Path]) -> None:
    """InvalidInput where there is nothing to work with, with what was described and where it was looked for."""
    problems = [*dataset.skipped[:1], *dataset.unreadable.values()]
    described = len(source.records)
    if not described:
        detail = f"; {len(dataset.skipped)} records cannot be used, the first: {problems[0]}" if problems else ""
        raise InvalidInput(f"{source.name} describes no image{detail}", "dataset")
    if len(missing) and not dataset.images and not dataset.unreadable:
        raise InvalidInput(
            f"{described} images are annotated and none of their files is there; the first was looked for at "
            f"{shown(next(iter(missing.values())))}; give the folder with --images",
            "dataset",
        )
    if not dataset.images:
        raise InvalidInput(
            f"none of the {len(dataset.unreadable)} images can be used; the first: "
            f"{next(iter(dataset.unreadable.values()))}",
            "dataset",
        )
    if dataset.skipped and not any(image.instances for image in dataset.images):
        raise InvalidInput(
            f"none of the {len(dataset.skipped)} annotated objects can be used; the first: {problems[0]}", "dataset"
        )
