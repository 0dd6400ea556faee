"""CSV as other tools write it, what is said of many bad rows, and formats by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import FORMATS, load
from tests.evaluation import exports
from tests.evaluation.exports import BOXES, SIZE, pictures
from tests.evaluation.test_formats import only, written

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")


@pytest.mark.parametrize(
    "text",
    [
        "image;x0;y0;x1;y1;label\n1.jpg;20,0;20,0;60;70;disc\n",
        "\ufeffFileName\tXMin\tYMin\tXMax\tYMax\tClass Name\n1.jpg\t20\t20\t60\t70\tdisc\n",
        "1.jpg,20,20,60,70,disc\n",
        "sep=;\nimage;x0;y0;x1;y1;label\n1.jpg;20;20;60;70;disc\n",
        "path,x1,y1,x2,y2,class\n./1.jpg,20,20,60,70,disc\n",
        "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height\ndisc,20,20,40,50,1.jpg,160,120\n",
        "image,x_center,y_center,width,height,label\n1.jpg,40,45,40,50,disc\n",
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n1,x,disc,1,.125,.375,.1666666666667,.5833333333333,0\n",
    ],
    ids=["semicolons", "tabs", "keras", "sep", "corners", "makesense", "centres", "open-images"],
)
def test_columns_of_other_tools(tmp_path: Path, text: str) -> None:
    pictures(tmp_path, ["1.jpg"])
    assert only(load(written(tmp_path / "labels.csv", text)), "disc").box == pytest.approx((20, 20, 60, 70))


def test_a_broken_quote_spoils_its_own_line_only(tmp_path: Path) -> None:
    pictures(tmp_path, ["1.jpg"])
    rows = ['"1.jpg,20,20,60,70,disc', "1.jpg,20,20,60,70,disc", '1.jpg,90,5,150,60,"sky"']
    dataset = load(written(tmp_path / "labels.csv", "image,x0,y0,x1,y1,label\n" + "\n".join(rows)))
    assert dataset.labels == ["disc", "sky"] and "line 2: line: is not CSV" in dataset.skipped[0]


def test_only_ten_of_many_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["1.jpg"])
    rows = ["1.jpg,20,20,60,70,disc"] * 30 + [f"1.jpg,20,20,x{n},70,disc" for n in range(12)]
    with pytest.warns(UserWarning, match="left out: 12 annotation") as caught:
        dataset = load(written(tmp_path / "labels.csv", "image,x0,y0,x1,y1,label\n" + "\n".join(rows)))
    assert len(dataset.skipped) == 12 and str(caught[0].message).endswith("and 2 more")
    assert len(str(caught[0].message).splitlines()) == 12


def test_the_command_line_names_every_format() -> None:
    from phs_milvus.cli import evaluate

    assert tuple(evaluate.FORMATS) == FORMATS


@pytest.mark.parametrize("writer", [exports.coco, exports.csv, exports.label_studio])
def test_a_named_format_finds_its_file_in_a_folder(writer: Callable[..., Path], tmp_path: Path) -> None:
    pictures(tmp_path, ["1.jpg"])
    name = {"coco": "coco", "csv": "table", "label_studio": "label-studio"}[writer.__name__]
    writer(tmp_path, ["1.jpg"], SIZE, BOXES)
    assert len(load(tmp_path, format=name).images) == len(load(tmp_path).images) == 1
    with pytest.raises(InvalidInput):
        load(tmp_path, format="visual-genome")
