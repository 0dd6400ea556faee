"""Readers on small fixtures written here, and what they say about malformed files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import AnnotationError, load
from phs_milvus.evaluation.queries import object_queries, prompt_of
from phs_milvus.pointing.prompts import Point, to_array

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")

WIDTH, HEIGHT = 41, 31


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def voc_object(name: str, box: tuple, difficult: int = 0) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def voc_file(name: str, *objects: str) -> str:
    return f"<annotation><filename>{name}</filename>{''.join(objects)}</annotation>"


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    objects = (
        voc_object("dog", (1, 1, 10, 8)) + voc_object("cat", ("3.5", 2, 20, 20)) + voc_object("cat", (1, 1, 41, 31), 1)
    )
    write(tmp_path / "Annotations/a.xml", f"<annotation><filename>a.png</filename>{objects}</annotation>")
    write(tmp_path / "Annotations/b.xml", "<annotation><filename>absent.png</filename></annotation>")
    picture(tmp_path / "JPEGImages/a.png")
    indices = np.zeros((HEIGHT, WIDTH), np.uint8)
    indices[2:6, 3:9] = 1
    indices[10:14, 10:20] = 2
    indices[2, 3] = 255
    (tmp_path / "SegmentationObject").mkdir()
    mask = Image.fromarray(indices, "P")
    mask.putpalette(list(range(256)) * 3)
    mask.save(tmp_path / "SegmentationObject/a.png")
    return tmp_path


def test_voc(voc_folder: Path) -> None:
    dataset = load(voc_folder)
    assert dataset.missing == ("b",)
    (image,) = dataset.images
    assert (image.id, image.path.name) == ("a", "a.png")
    dog, cat, hard = image.instances
    # 1-based and inclusive becomes 0-based and exclusive; 2012 has fractions.
    assert dog.box == (0, 0, 10, 8) and cat.box == (2.5, 1, 20, 20)
    assert [dog.is_query, cat.is_query, hard.is_query] == [True, True, False]
    assert to_array(dog.segment(), WIDTH, HEIGHT).sum() == 4 * 6 - 1
    assert to_array(cat.segment(), WIDTH, HEIGHT)[10:14, 10:20].all()
    with pytest.raises(AnnotationError, match=r"a\.png: object 2 of a\.xml: mask: has no pixel with index 3"):
        hard.segment()


@pytest.mark.parametrize(
    ("xml", "complaint"),
    [
        ("<annotation>", r"b\.xml: file: is not XML"),
        ("<other/>", r"b\.xml: file: is no VOC annotation but <other>"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', "declares XML entities"),
        (voc_file("b", voc_object("", (1, 1, 2, 2))), "object 0: name"),
        (
            voc_file("b", voc_object("x", (1, 1, "no", 2))),
            "object 0: bndbox: is not 4 finite numbers",
        ),
        (
            voc_file("b", voc_object("x", (9, 1, 2, 2))),
            "object 0: bndbox: is not a box",
        ),
        (voc_file("b", voc_object("x", (1, 1, "nan", 2))), "bndbox: is not 4 finite numbers"),
    ],
)
def test_malformed_voc(voc_folder: Path, xml: str, complaint: str) -> None:
    write(voc_folder / "Annotations/b.xml", xml)
    dataset = load(voc_folder)
    assert [image.id for image in dataset.images] == ["a"]
    (problem,) = dataset.skipped
    assert re.search(complaint, problem)


def coco(**changes: Any) -> dict[str, Any]:
    inside = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    inside[3:9, 4:12] = 1
    compressed = coco_mask.encode(inside)
    compressed["counts"] = compressed["counts"].decode()
    annotation = {"id": 7, "image_id": 1, "category_id": 5, "bbox": [4, 3, 8, 6]}
    return {
        "images": [{"id": 1, "file_name": "one.png"}, {"id": 2, "file_name": "two.png"}],
        "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}],
        "annotations": [
            {**annotation, "segmentation": [[4, 3, 12, 3, 12, 9, 4, 9], [20, 20, 24, 20, 24, 24, 20, 24]], **changes},
            {**annotation, "id": 8, "category_id": 6, "segmentation": compressed, "iscrowd": 1},
            {
                **annotation,
                "id": 9,
                "bbox": [1, 1, 0, 5],
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 31 * 41]},
            },
            {**annotation, "id": 10, "image_id": 2},
        ],
    }


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    picture(tmp_path / "val2017/one.png")
    picture(tmp_path / "val2017/two.png")
    return tmp_path


def test_coco(coco_folder: Path) -> None:
    path = write(coco_folder / "annotations/instances_val2017.json", coco())
    one, two = load(path).images
    polygon, crowd, everything = one.instances
    assert (polygon.label, polygon.box, polygon.is_query) == ("dog", (4, 3, 12, 9), True)
    assert to_array(polygon.segment(), WIDTH, HEIGHT).sum() == 48 + 16
    assert (crowd.label, crowd.is_query) == ("cat", False)
    assert to_array(crowd.segment(), WIDTH, HEIGHT).sum() == 48
    assert everything.box == (1, 1, 2, 6)
    assert to_array(everything.segment(), WIDTH, HEIGHT).all()
    assert [instance.segment for instance in two.instances] == [None]
    assert load(path, images=coco_folder / "val2017").images == (one, two)
    picture(path.parent / "one.png")  # a stray copy beside the annotations is not where the images are
    assert load(path).images == (one, two)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bbox": [1, 2, 3]}, r"annotation 7: bbox: is not \[x, y, width, height\]"),
        ({"bbox": "none"}, "annotation 7: bbox: is 'none'"),
        ({"bbox": [1, 2, 3, "x"]}, "annotation 7: bbox: is not 4 finite numbers"),
        ({"image_id": 3}, "annotation 7: image_id: names no image"),
        ({"image_id": None}, "annotation 7: image_id: is None"),
        ({"category_id": 99}, "annotation 7: category_id: names no category"),
    ],
)
def test_malformed_coco(coco_folder: Path, changes: dict, complaint: str) -> None:
    path = write(coco_folder / "instances.json", coco(**changes))
    dataset = load(path, images=coco_folder / "val2017")
    assert len(dataset.images) == 2 and sum(len(image.instances) for image in dataset.images) == 3
    (problem,) = dataset.skipped
    assert re.search(r"instances\.json: " + complaint, problem)


def test_malformed_coco_outline_and_file(coco_folder: Path) -> None:
    path = write(coco_folder / "instances.json", coco(segmentation=[[1, 2, 3]]))
    instance = load(path, images=coco_folder / "val2017").images[0].instances[0]
    with pytest.raises(AnnotationError, match="annotation 7: segmentation"):
        instance.segment()
    with pytest.raises(AnnotationError, match="is not readable JSON"):
        load(write(coco_folder / "broken.json", "{"))
    with pytest.raises(AnnotationError, match="categories: is missing"):
        load(write(coco_folder / "empty.json", {}))
    with pytest.raises(InvalidInput, match=r"2 images are annotated and none of .* looked for at .*deep/one\.png"):
        load(write(coco_folder / "elsewhere/deep/instances.json", coco()))


def test_visual_genome(tmp_path: Path) -> None:
    picture(tmp_path / "VG_100K/10.jpg")
    picture(tmp_path / "VG_100K_2/2.jpg")
    write(tmp_path / "image_data.json", [{"image_id": 10}, {"image_id": 2}, {"image_id": 3}])
    dog = {"object_id": 1, "names": ["Dog ", "animal"], "x": 3, "y": 4, "w": 5, "h": 0}
    objects = [{"image_id": n, "objects": [dog]} for n in (10, 2, 3)]
    write(tmp_path / "objects.json", objects)
    dataset = load(tmp_path)
    assert dataset.missing == ("3",)
    two, ten = dataset.images
    assert (two.id, ten.id, two.path.parent.name) == ("2", "10", "VG_100K_2")
    assert (ten.instances[0].label, ten.instances[0].box) == ("dog", (3, 4, 8, 5))
    for bad, complaint in (
        ([{"image_id": 99, "objects": []}], "record 0: image_id: 99 is not in"),
        ([{"image_id": 2, "objects": [{**dog, "names": []}]}], "record 0, object 0: names"),
        ([{"image_id": 2, "objects": [{**dog, "w": None}]}], "record 0, object 0: w: is None"),
        ({}, "is a JSON dict, not a list"),
    ):
        write(tmp_path / "objects.json", bad)
        with pytest.raises(InvalidInput, match=complaint):
            load(tmp_path)
    write(tmp_path / "objects.json", [*objects, {"image_id": 99, "objects": []}])
    dataset = load(tmp_path)
    assert len(dataset.images) == 2 and re.search("record 3: image_id: 99 is not in", dataset.skipped[0])


def test_tables(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "empty.png"):
        picture(tmp_path / "images" / name)
    rows = "image,x0,y0,x1,y1,label\nb.png,1,2,3.5,4,dog\na.png,0,0,9,9,cat\nb.png,0,0,5,5, cat\nempty.png,,,,,\n"
    table = load(write(tmp_path / "images/labels.csv", "\ufeff" + rows))
    assert [(i.id, [(o.label, o.box) for o in i.instances]) for i in table.images] == [
        ("a.png", [("cat", (0, 0, 9, 9))]),
        ("b.png", [("dog", (1, 2, 3.5, 4)), ("cat", (0, 0, 5, 5))]),
        ("empty.png", []),
    ]
    lines = '{"image": "b.png", "x0": 1, "y0": 2, "x1": 3, "y1": 4, "label": "dog"}\n\n{"image": "a.png"}\n'
    other = load(write(tmp_path / "labels.jsonl", lines), images=tmp_path / "images")
    assert [len(image.instances) for image in other.images] == [0, 1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image,x0,y0,x1,label\n", "line 1: header: lacks y1"),
        ("image,x0,y0,x1,y1,label\na.png,1,2,x,4,dog\n", "line 2: x0, y0, x1, y1: is not 4 finite numbers"),
        ("image,x0,y0,x1,y1,label\na.png,1,2,1,4,dog\n", "line 2: x0, y0, x1, y1: is not a box"),
        ("image,x0,y0,x1,y1,label\na.png,1,2,3,4,\n", "line 2: label: is empty"),
        ('image,x0,y0,x1,y1,label\n"a.png,1\n', "is not CSV"),
    ],
)
def test_malformed_tables(tmp_path: Path, text: str, complaint: str) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(InvalidInput, match=complaint):
        load(write(tmp_path / "labels.csv", text))
    header, *rows = text.splitlines()
    if rows:  # among good rows, it is skipped and named
        good = "a.png,1,2,3,4,dog"
        dataset = load(write(tmp_path / "labels.csv", "\n".join([header, *rows, good])))
        assert [len(image.instances) for image in dataset.images] == [1]
        assert len(dataset.skipped) == 1 and re.search(complaint, dataset.skipped[0])


def test_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        load(tmp_path / "none")
    with pytest.raises(InvalidInput, match="holds no annotations that are known: neither a VOC folder"):
        load(tmp_path)
    with pytest.raises(InvalidInput, match="cannot tell the format"):
        load(write(tmp_path / "a.txt", ""))
    with pytest.raises(InvalidInput, match=r"describes no image; .* line 1: line: is not JSON"):
        load(write(tmp_path / "a.jsonl", "{"))
    picture(tmp_path / "caf.png")
    (tmp_path / "a.jsonl").write_bytes(
        b'{"image": "caf.png", "x0": 1, "y0": 1, "x1": 9, "y1": 9, "label": "dog"}\n{"image": "caf\xe9.png"}\n'
    )
    assert re.search(r"a\.jsonl: line 2: line: is not UTF-8", load(tmp_path / "a.jsonl").skipped[0])
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(InvalidInput, match="describes no image"):
        load(tmp_path)


def test_queries_are_the_largest_of_each_class_where_there_are_two(voc_folder: Path) -> None:
    small, big = voc_object("dog", (1, 1, 5, 5)), voc_object("dog", (1, 1, 30, 30))
    for name, objects in (("c", small + big), ("d", small + big + voc_object("cat", (2, 2, 9, 9), 1))):
        write(
            voc_folder / f"Annotations/{name}.xml", f"<annotation><filename>{name}.png</filename>{objects}</annotation>"
        )
        picture(voc_folder / f"JPEGImages/{name}.png")
    queries = object_queries(load(voc_folder))
    # c has one class only; d has two, but its cat is difficult.
    found = [(query.image, query.instance.label, query.instance.box) for query in queries]
    assert found == [(0, "cat", (2.5, 1, 20, 20)), (0, "dog", (0, 0, 10, 8)), (2, "dog", (0, 0, 30, 30))]


def test_point_prompts_are_centres(voc_folder: Path) -> None:
    dog, cat, _ = load(voc_folder).images[0].instances
    assert prompt_of(cat, "point", WIDTH, HEIGHT) == Point(15, 12)
    assert prompt_of(dog, "box", WIDTH, HEIGHT).x1 == 10
    with pytest.raises(InvalidInput, match="one of box, point, segmentation"):
        prompt_of(dog, "lasso", WIDTH, HEIGHT)
