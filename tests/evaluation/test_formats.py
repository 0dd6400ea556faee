"""What each format has that others have not: outlines, masks, turned boxes, splits, encodings."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import AnnotationError, Dataset, load
from phs_milvus.pointing.prompts import to_array
from tests.evaluation import exports
from tests.evaluation.exports import BOXES, SIZE, pictures

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")

WIDTH, HEIGHT = SIZE


def written(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def only(dataset: Dataset, label: str) -> Any:
    (found,) = [entry for image in dataset.images for entry in image.instances if entry.label == label]
    return found


def drawn(instance: Any) -> np.ndarray:
    return to_array(instance.segment(), WIDTH, HEIGHT)


# --- COCO -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iscrowd", "is_query"),
    [
        *((value, True) for value in (0, "0", None, False, "false", "absent")),
        *((value, False) for value in (1, "1", True, "true")),
    ],
)
def test_iscrowd_in_all_its_forms(tmp_path: Path, iscrowd: object, is_query: bool) -> None:
    """A crowd is no query, and its class counts as present."""
    pictures(tmp_path, ["1.jpg"])
    path = exports.coco(tmp_path, ["1.jpg"], SIZE, BOXES)
    value = json.loads(path.read_text())
    for annotation in value["annotations"]:
        del annotation["iscrowd"]
        if iscrowd != "absent":
            annotation["iscrowd"] = iscrowd
    (image,) = load(written(path, value)).images
    assert [entry.is_query for entry in image.instances] == [is_query, is_query]


def test_outlines_are_scaled_and_turned_with_their_boxes(tmp_path: Path) -> None:
    """Labelled at half the size, before EXIF turned the photo clockwise: polygons and run lengths end in one place."""
    pictures(tmp_path, ["1.jpg"], (320, 240), orientation=6)
    inside = np.zeros((120, 160), np.uint8, order="F")
    inside[20:70, 20:60] = 1
    rle = coco_mask.encode(inside)
    path = exports.coco(tmp_path, ["1.jpg"], SIZE, [("disc", 20, 20, 60, 70), ("ring", 20, 20, 60, 70)])
    value = json.loads(path.read_text())
    value["annotations"][0]["segmentation"] = {"size": [120, 160], "counts": rle["counts"].decode()}
    value["annotations"][1]["segmentation"] = [[20, 20, 60, 20, 60, 70, 20, 70]]
    dataset = load(written(path, value))
    expected = np.zeros((320, 240), np.bool_)
    expected[40:120, 100:200] = True  # x from 240 - 2 * 70 to 240 - 2 * 20, y from 2 * 20 to 2 * 60
    for label in ("disc", "ring"):
        assert only(dataset, label).box == (100, 40, 200, 120)
        assert np.array_equal(to_array(only(dataset, label).segment(), 240, 320), expected)


def test_coco_of_other_tools(tmp_path: Path) -> None:
    pictures(tmp_path / "train", ["1.jpg"])
    exports.coco(tmp_path / "train", ["1.jpg"], SIZE, BOXES).rename(tmp_path / "train/_annotations.coco.json")
    assert len(load(tmp_path / "train").images) == 1
    with pytest.raises(InvalidInput, match="holds the splits train; give one of them"):
        load(tmp_path)
    results = written(tmp_path / "results.json", [{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
    with pytest.raises(AnnotationError, match="holds COCO results"):
        load(results)
    with pytest.raises(AnnotationError, match="VGG annotator; export it as COCO"):
        load(written(tmp_path / "via.json", {"_via_settings": {}, "_via_img_metadata": {}}))
    value = json.loads((tmp_path / "train/_annotations.coco.json").read_text())
    for annotation in value["annotations"]:
        del annotation["bbox"]
        annotation["segmentation"] = [20, 20, 60, 20, 60, 70]  # one polygon without its outer list
    boxless = load(written(tmp_path / "train/boxless.json", value))
    assert {entry.box for entry in boxless.images[0].instances} == {(20, 20, 60, 70)}


def test_accents_of_a_mac_and_ids_of_a_data_frame(tmp_path: Path) -> None:
    """Zips made on a Mac hold an accent as a character of its own; pandas writes whole numbers as 1.0."""
    pictures(tmp_path, ["e\u0301.jpg"])
    path = exports.coco(tmp_path, ["\u00e9.jpg"], SIZE, BOXES)
    value = json.loads(path.read_text())
    for annotation in value["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])
    assert len(load(written(path, value)).images[0].instances) == 2


def test_names_that_lead_to_one_file_from_different_folders_are_not_merged(tmp_path: Path) -> None:
    """train/1.jpg and val/1.jpg are two pictures, of which a flat folder holds one: which, nobody knows."""
    pictures(tmp_path / "flat", ["1.jpg", "2.jpg"])
    path = exports.coco(tmp_path, ["train/1.jpg", "val/1.jpg", "val/2.jpg"], SIZE, BOXES)
    dataset = load(path, images=tmp_path / "flat")
    assert [image.path.name for image in dataset.images] == ["2.jpg"]
    assert "train/1.jpg and val/1.jpg both lead to it" in next(iter(dataset.unreadable.values()))


# --- VOC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "label"),
    [
        ("gbk", "人"),
        ("gb2312", "人"),
        ("big5", "人"),
        ("shift_jis", "人"),
        ("euc-kr", "한"),
        ("utf-16", "é"),
        ("latin-1", "é"),
    ],
)
def test_voc_in_the_encoding_it_declares(tmp_path: Path, encoding: str, label: str) -> None:
    pictures(tmp_path, ["1.jpg"])
    exports.voc(tmp_path, ["1.jpg"], SIZE, [(label, 20, 20, 60, 70)])
    file = tmp_path / "Annotations/1.xml"
    file.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{file.read_text("utf-8")}'.encode(encoding))
    assert only(load(tmp_path), label).box == (20, 20, 60, 70)


def test_voc_of_no_known_encoding_is_skipped_and_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["1.jpg", "2.jpg"])
    exports.voc(tmp_path, ["1.jpg", "2.jpg"], SIZE, BOXES)
    file = tmp_path / "Annotations/1.xml"
    file.write_bytes(b'<?xml version="1.0" encoding="x-none"?>' + file.read_bytes().replace(b"disc", b"d\xe9sc"))
    dataset = load(tmp_path)
    assert [image.id for image in dataset.images] == ["2"]
    assert "1.xml: file: is not XML: its text is not x-none or utf-8" in dataset.skipped[0]


@pytest.mark.parametrize("filename", ["1", "C:\\\\me\\\\1.jpg", "1.JPG", "IMG.jpg", "2.jpg", ""])
def test_a_voc_file_belongs_to_the_image_of_its_stem(tmp_path: Path, filename: str) -> None:
    pictures(tmp_path / "images", ["1.jpg", "2.jpg"])
    exports.voc(tmp_path, ["1.jpg"], SIZE, BOXES)
    file = tmp_path / "Annotations/1.xml"
    file.write_text(file.read_text().replace("<filename>1.jpg<", f"<filename>{filename}<"))
    (tmp_path / "Annotations/._1.xml").write_bytes(b"\0\x05\x16\x07Mac OS X")
    dataset = load(tmp_path)
    assert [image.path.name for image in dataset.images] == ["1.jpg"] and not dataset.remarks


def test_voc_folders_of_several_years(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        pictures(tmp_path / year / "JPEGImages", ["1.jpg"])
        exports.voc(tmp_path / year, ["1.jpg"], SIZE, BOXES)
    dataset = load(tmp_path)
    assert [image.path.parent.parent.name for image in dataset.images] == ["VOC2007", "VOC2012"] and not dataset.notes


def test_voc_one_pixel_and_flat_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, ["1.jpg"])
        exports.voc(tmp_path / split, ["1.jpg"], SIZE, [("dot", 103, 36, 104, 37)])
        (tmp_path / split / "Annotations/1.xml").rename(tmp_path / split / "1.xml")
        (tmp_path / split / "Annotations").rmdir()
    dataset = load(tmp_path)
    assert [(image.id, image.instances[0].box) for image in dataset.images] == [
        ("test/1", (103, 36, 104, 37)),
        ("train/1", (103, 36, 104, 37)),
    ]


# --- YOLO -------------------------------------------------------------------------------------------------------------


def test_yolo_polygons_splits_and_bad_lines(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pictures(tmp_path / "images" / split, ["1.jpg", "empty.jpg"])
    written(
        tmp_path / "data.yaml", "path: ../datasets/gone\ntrain: images/train\nval: images/val\nnames: {0: disc, 1: sky}"
    )
    lines = [
        "0 .25 .25 .25 .5 0.9",
        "1 .5 .5 .75 .5 .75 .75",
        "7 .5 .5 .1 .1",
        "0 80 60 20 20",
        "0 .5 .5",
        "x .5 .5 .1 .1",
    ]
    written(tmp_path / "labels/train/1.txt", "\n".join(lines))
    dataset = load(tmp_path / "data.yaml")
    assert [image.id for image in dataset.images] == [
        "images/train/1", "images/train/empty", "images/val/1", "images/val/empty",
    ]  # fmt: skip
    assert only(dataset, "disc").box == (20, 0, 60, 60)
    assert only(dataset, "sky").box == (80, 60, 120, 90)
    assert drawn(only(dataset, "sky"))[65, 115] and not drawn(only(dataset, "sky"))[85, 85]
    for problem, complaint in zip(
        dataset.skipped,
        ("'7' names none of 2 classes", "are no shares of the image", "are 2 numbers", "'x' names none"),
        strict=True,
    ):
        assert complaint in problem and "1.txt: line" in problem


def test_yolo_without_yaml(tmp_path: Path) -> None:
    pictures(tmp_path / "images", ["1.jpg"])
    written(tmp_path / "labels/1.txt", "1 .5 .5 .5 .5")
    assert only(load(tmp_path), "1").box == (40, 30, 120, 90)
    written(tmp_path / "classes.txt", "disc\nsky\n")
    assert only(load(tmp_path), "sky").box == (40, 30, 120, 90)
    with pytest.raises(AnnotationError, match=r"data\.yaml: file: is not YAML"):
        load(written(tmp_path / "data.yaml", "names: [a"))


# --- LabelMe, CVAT ----------------------------------------------------------------------------------------------------


def test_labelme_shapes(tmp_path: Path) -> None:
    pictures(tmp_path / "images", ["1.jpg"])
    buffer = io.BytesIO()
    Image.fromarray(np.tri(10, 10, dtype=np.uint8) * 255).save(buffer, "PNG")
    shapes = [
        {"label": "polygon", "points": [[10, 10], [30, 10], [30, 40]]},
        {"label": "circle", "shape_type": "circle", "points": [[80, 60], [80, 70]]},
        {"label": "mask", "shape_type": "mask", "points": [[100, 20], [110, 30]],
         "mask": base64.b64encode(buffer.getvalue()).decode()},
        {"label": "point", "shape_type": "point", "points": [[1, 1]]},
        {"label": "", "points": [[10, 10], [30, 10], [30, 40]]},
    ]  # fmt: skip
    written(
        tmp_path / "json/1.json",
        {"imagePath": "..\\images\\1.jpg", "imageWidth": 160, "imageHeight": 120, "shapes": shapes},
    )
    dataset = load(tmp_path / "json")
    assert only(dataset, "polygon").box == (10, 10, 30, 40) and drawn(only(dataset, "polygon"))[12, 28]
    assert only(dataset, "circle").box == pytest.approx((70, 50, 90, 70))
    assert drawn(only(dataset, "circle")).sum() == pytest.approx(np.pi * 100, rel=0.03)
    assert np.array_equal(drawn(only(dataset, "mask"))[20:30, 100:110], np.tri(10, 10, dtype=bool))
    assert "'point' of 1 points has no area" in dataset.skipped[0] and "is no class name" in dataset.skipped[1]


def test_cvat_shapes(tmp_path: Path) -> None:
    pictures(tmp_path / "images/cam 1", ["1.jpg"])
    shapes = (
        '<tag label="night"/><polygon label="polygon" points="10.0,10.0;30.0,10.0;30.0,40.0"/>'
        '<box label="turned" xtl="40" ytl="50" xbr="80" ybr="70" rotation="90.0"/>'
        '<ellipse label="ellipse" cx="100" cy="60" rx="20" ry="10"/>'
        '<mask label="mask" rle="5, 5, 10" left="100" top="20" width="10" height="2"/>'
        '<mask label="broken" rle="5, 5" left="100" top="20" width="10" height="2"/>'
        '<points label="points" points="1,1"/><box label="none" xtl="40" ytl="50" xbr="" ybr="70"/>'
    )
    image = f'<image id="0" name="cam 1/1.jpg" width="160" height="120">{shapes}</image>'
    path = written(tmp_path / "annotations.xml", f"<annotations>{image}</annotations>")
    dataset = load(path)
    assert only(dataset, "polygon").box == (10, 10, 30, 40)
    assert only(dataset, "turned").box == pytest.approx((50, 40, 70, 80))
    assert drawn(only(dataset, "turned")).sum() == 20 * 40
    assert only(dataset, "ellipse").box == pytest.approx((80, 50, 120, 70))
    assert drawn(only(dataset, "mask"))[20, 105:110].all() and drawn(only(dataset, "mask")).sum() == 5
    with pytest.raises(AnnotationError, match="rle: has 10 pixels for 10x2"):
        only(dataset, "broken").segment()
    assert len(dataset.skipped) == 2 and "<points> has no area" in dataset.skipped[0]
    with pytest.raises(AnnotationError, match="CVAT for video"):
        load(written(path, "<annotations><track/></annotations>"))


# --- Label Studio, FiftyOne -------------------------------------------------------------------------------------------


def test_label_studio_regions(tmp_path: Path) -> None:
    pictures(tmp_path / "pics", ["a b.jpg"])
    size = {"original_width": 160, "original_height": 120}

    def region(kind: str, **value: Any) -> dict[str, Any]:
        return {"id": kind, **size, "image_rotation": 0, "value": value}

    flat = {"x": 25, "y": 25, "width": 50, "height": 25}
    results = [
        region("turned", **flat, rotation=90, rectanglelabels=["turned"]),
        region("polygon", points=[[25, 25], [50, 25], [50, 50]], polygonlabels=["polygon"]),
        region("ellipse", x=50, y=50, radiusX=25, radiusY=25, rotation=0, ellipselabels=["ellipse"]),
        region("brush", rle=[1, 2], format="rle", brushlabels=["brush"]),
        region("choice", choices=["night"]),
        {**region("canvas", **flat, rectanglelabels=["canvas"]), "image_rotation": 90},
    ]
    task = {
        "id": 5,
        "data": {"text": "Day 1. Rain.", "photo": "/data/local-files/?d=pics/a%20b.jpg"},
        "annotations": [
            {"result": results},
            {"was_cancelled": True, "result": [region("no", **flat, rectanglelabels=["no"])]},
        ],
    }
    dataset = load(written(tmp_path / "export.json", [task]))
    assert dataset.labels == ["ellipse", "polygon", "turned"]
    # A rectangle of 80 x 30 pixels at (40, 30), turned clockwise by 90 degrees around that corner.
    assert only(dataset, "turned").box == pytest.approx((10, 30, 40, 110))
    assert drawn(only(dataset, "turned")).sum() == 80 * 30
    assert only(dataset, "polygon").box == (40, 30, 80, 60)
    assert only(dataset, "ellipse").box == pytest.approx((40, 30, 120, 90))
    assert "export brush masks" in dataset.skipped[0] and "image_rotation: is 90" in dataset.skipped[1]


def test_fiftyone_fields_and_polylines(tmp_path: Path) -> None:
    pictures(tmp_path / "data", ["1.jpg"])
    shape = {"label": "disc", "points": [[[0.25, 0.25], [0.5, 0.25], [0.5, 0.5]]], "closed": True}
    detections = {"_cls": "Detections", "detections": [{"label": "sky", "bounding_box": [40, 30, 9, 9]}]}
    sample = {"filepath": "data/1.jpg", "shapes": {"_cls": "Polylines", "polylines": [shape]}}
    path = written(tmp_path / "samples.json", {"samples": [sample]})
    assert only(load(tmp_path), "disc").box == (40, 30, 80, 60)
    written(path, {"samples": [{**sample, "predictions": detections}]})
    with pytest.raises(InvalidInput, match=r"several fields \(predictions, shapes\)"):
        load(path)
    written(path, {"samples": [{**sample, "ground_truth": detections}]})
    with pytest.raises(InvalidInput, match="is no share of the image"):
        load(path)
