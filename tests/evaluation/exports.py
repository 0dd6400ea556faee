"""The same small labelled set as each tool writes it: what holds for one format is tested for all of them.

Every writer takes a folder, the images' names, the size that labels are for, and the boxes (label, x0, y0, x1, y1) of
each image in pixels of that size; it returns what `load` is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[str, float, float, float, float]
Writer = Callable[[Path, Sequence[str], tuple[int, int], Sequence[Box]], Path]
BOXES: tuple[Box, ...] = (("disc", 20, 20, 60, 70), ("sky", 90, 5, 150, 60))
SIZE = (160, 120)


def pictures(folder: Path, names: Sequence[str], size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    """Image files of a stored size, with an EXIF orientation where it is not 1."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8))
        exif = Image.Exif()
        if orientation != 1:
            exif[0x0112] = orientation
        image.save(path, exif=exif)


def _json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def coco(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    labels = sorted({box[0] for box in boxes})
    images = [{"id": n, "file_name": name, "width": size[0], "height": size[1]} for n, name in enumerate(names)]
    annotations = [
        {"image_id": n, "category_id": labels.index(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
        for n in range(len(names))
        for label, x0, y0, x1, y1 in boxes
    ]
    categories = [{"id": n, "name": label} for n, label in enumerate(labels)]
    value = {
        "images": images,
        "annotations": [{"id": n + 1, **a} for n, a in enumerate(annotations)],
        "categories": categories,
    }
    return _json(root / "coco.json", value)


def voc(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for name in names:
        objects = "".join(
            f"<object><name>{label}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox></object>"
            for label, x0, y0, x1, y1 in boxes
        )
        text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}"
        file = root / "Annotations" / f"{Path(name).stem}.xml"
        file.write_text(f"<annotation><filename>{name}</filename>{text}</annotation>")
    return root


def visual_genome(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """Files are named by numbers: those of `names`."""
    numbers = [int(Path(name).stem) for name in names]
    _json(root / "image_data.json", [{"image_id": n, "width": size[0], "height": size[1]} for n in numbers])
    objects = [{"names": [label], "x": x0, "y": y0, "w": x1 - x0, "h": y1 - y0} for label, x0, y0, x1, y1 in boxes]
    _json(root / "objects.json", [{"image_id": n, "objects": objects} for n in numbers])
    return root


def csv(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """TensorFlow's and Roboflow's columns, which declare the size."""
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    rows += [f"{n},{size[0]},{size[1]},{b[0]},{b[1]},{b[2]},{b[3]},{b[4]}" for n in names for b in boxes]
    path = root / "_annotations.csv"
    path.write_text("\n".join(rows))
    return path


def jsonl(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    keys = ("label", "x0", "y0", "x1", "y1")
    rows = [
        {"image": n, "image_width": size[0], "image_height": size[1], **dict(zip(keys, b, strict=True))}
        for n in names
        for b in boxes
    ]
    path = root / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def yolo(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """In shares of the image, so that no size is declared; labels lie beside the images."""
    labels = sorted({box[0] for box in boxes})
    (root / "data.yaml").write_text(f"names: {json.dumps(labels)}\ntrain: .\n")
    for name in names:
        lines = [
            f"{labels.index(label)} {(x0 + x1) / 2 / size[0]} {(y0 + y1) / 2 / size[1]} {(x1 - x0) / size[0]} "
            f"{(y1 - y0) / size[1]}"
            for label, x0, y0, x1, y1 in boxes
        ]
        (root / name).with_suffix(".txt").write_text("\n".join(lines))
    return root


def labelme(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    for name in names:
        shapes = [{"label": b[0], "shape_type": "rectangle", "points": [[b[3], b[4]], [b[1], b[2]]]} for b in boxes]
        value = {"imagePath": name, "imageWidth": size[0], "imageHeight": size[1], "shapes": shapes}
        _json(root / f"{Path(name).stem}.json", value)
    return root


def cvat(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    images = "".join(
        f'<image id="{n}" name="{name}" width="{size[0]}" height="{size[1]}">'
        + "".join(f'<box label="{b[0]}" xtl="{b[1]}" ytl="{b[2]}" xbr="{b[3]}" ybr="{b[4]}"/>' for b in boxes)
        + "</image>"
        for n, name in enumerate(names)
    )
    path = root / "annotations.xml"
    path.write_text(f"<annotations><version>1.1</version>{images}</annotations>")
    return path


def _region(size: tuple[int, int], box: Box) -> dict[str, object]:
    label, x0, y0, x1, y1 = box
    across, down = 100 / size[0], 100 / size[1]
    sides = {"x": x0 * across, "y": y0 * down, "width": (x1 - x0) * across, "height": (y1 - y0) * down}
    return {**sides, "rotation": 0, "rectanglelabels": [label]}


def label_studio(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    original = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    results = [{"id": "r", "type": "rectanglelabels", **original, "value": _region(size, box)} for box in boxes]
    tasks = [
        {"id": n, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"}, "annotations": [{"result": results}]}
        for n, name in enumerate(names)
    ]
    return _json(root / "project.json", tasks)


def label_studio_min(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    regions = [{**_region(size, box), "original_width": size[0], "original_height": size[1]} for box in boxes]
    tasks = [{"id": n, "image": f"s3://bucket/some/{name}", "label": regions} for n, name in enumerate(names)]
    return _json(root / "min.json", tasks)


def _detections(size: tuple[int, int], boxes: Sequence[Box]) -> list[dict[str, object]]:
    return [
        {
            "_cls": "Detection",
            "label": label,
            "bounding_box": [x0 / size[0], y0 / size[1], (x1 - x0) / size[0], (y1 - y0) / size[1]],
        }
        for label, x0, y0, x1, y1 in boxes
    ]


def fiftyone(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    held = {"_cls": "Detections", "detections": _detections(size, boxes)}
    metadata = {"width": size[0], "height": size[1]}
    samples = [{"filepath": name, "metadata": metadata, "ground_truth": held} for name in names]
    return _json(root / "samples.json", {"samples": samples}).parent


def fiftyone_detections(root: Path, names: Sequence[str], size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """FiftyOneImageDetectionDataset, which declares no size."""
    classes = sorted({box[0] for box in boxes})
    entries = [{**entry, "label": classes.index(str(entry["label"]))} for entry in _detections(size, boxes)]
    labels = {Path(name).stem: entries for name in names}
    return _json(root / "labels.json", {"classes": classes, "labels": labels})


WRITERS: dict[str, Writer] = {
    "coco": coco,
    "voc": voc,
    "visual-genome": visual_genome,
    "csv": csv,
    "jsonl": jsonl,
    "yolo": yolo,
    "labelme": labelme,
    "cvat": cvat,
    "label-studio": label_studio,
    "label-studio-min": label_studio_min,
    "fiftyone": fiftyone,
    "fiftyone-detections": fiftyone_detections,
}
# Whose files declare the size that labels are for.
SIZED = [name for name in WRITERS if name not in ("yolo", "fiftyone-detections")]
# Whose coordinates are pixels.
IN_PIXELS = ["coco", "voc", "visual-genome", "csv", "jsonl", "labelme", "cvat"]
