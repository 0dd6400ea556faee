"""Objects that cannot be pointed at are left out of an evaluation, counted and named; the rest is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phs_milvus.cli import main
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import PromptError
from phs_milvus.evaluation import Bench, Store, load, object_queries
from phs_milvus.evaluation.painting import paintable
from phs_milvus.evaluation.queries import box_of, prompt_of
from phs_milvus.pointing.prompts import Point
from tests.evaluation import exports
from tests.evaluation.exports import BOXES, SIZE, pictures

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")

NAMES = [f"{number}.jpg" for number in range(1, 7)]
OTHER_SIZE = {"size": [160, 120], "counts": [100, 50, 160 * 120 - 150]}


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[[Any], Path]:
    """COCO with outlines of six images; the first object's is replaced."""

    def make(segmentation: Any) -> Path:
        pictures(tmp_path, NAMES)
        path = exports.coco(tmp_path, NAMES, SIZE, BOXES)
        value = json.loads(path.read_text())
        for annotation in value["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        value["annotations"][0]["segmentation"] = segmentation
        path.write_text(json.dumps(value))
        return path

    return make


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[20, 20, 60, 20]], "polygon: needs at least 3 points"),
        ([[20, 20, 60, 20, 60, 70], [1, 1, 5, 5]], "polygon: needs at least 3 points"),
        ([[20, 20, 60]], "segmentation: is no list of polygons"),
        (["20 20 60 20"], "segmentation: is no list of polygons"),
        (OTHER_SIZE, "mask is 120x160, but the image is 160x120"),
        ({"size": [120, 160], "counts": [7]}, "RLE counts must be 0 or more and sum to"),
        ({"size": [120, 160], "counts": [160 * 120]}, "mask: empty"),
        ([[500, 500, 600, 500, 600, 600]], "lies entirely outside"),
    ],
)
def test_a_broken_outline_leaves_one_query_out(
    labelled: Callable[[Any], Path], vit_encoder: Encoder, tmp_path: Path, segmentation: Any, reason: str
) -> None:
    with Store(tmp_path / "cache", vit_encoder.info) as store:
        bench = Bench(vit_encoder, load(labelled(segmentation)), store)
        every = object_queries(bench.dataset)
        usable, left_out, boxed = paintable(every, ("segmentation",), bench.dataset, bench.sizes)
        assert usable == every[1:] and not boxed
        assert len(left_out) == 1 and left_out[0].startswith("1.jpg, disc: ") and reason in left_out[0]
        with pytest.raises(PromptError, match=r"^1\.jpg, disc: "):
            bench.queries(every, "segmentation")
        assert len(bench.queries(usable, "segmentation")) == 11
        # The box's centre stands in for a click.
        usable, left_out, boxed = paintable(every, ("box", "point"), bench.dataset, bench.sizes)
        assert usable == every and not left_out and boxed == ["1.jpg, disc"]
        assert prompt_of(every[0].instance, "point", *SIZE) == Point(40, 45)


def test_the_report_says_how_many_and_why(
    labelled: Callable[[Any], Path], vit_encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> tuple[int, str, dict[str, str]]:
        place = ("--encoder", vit_encoder.address, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"))
        with pytest.raises(SystemExit) as done:
            main(["eval", str(path), "--preset", "heads", *flags, *place])
        results = tmp_path / "out/results.json"
        return int(done.value.code or 0), capsys.readouterr().err, json.loads(results.read_text())["facts"]

    path = labelled(OTHER_SIZE)
    code, said, facts = run("--prompt", "segmentation,point")
    assert code == 0 and "left out: 1 of 12 queries, which cannot be pointed at:\n  1.jpg, disc: mask is" in said
    assert "11 queries" in facts["dataset"] and facts["queries left out"].startswith("1 (1.jpg, disc: mask is 120x160")
    assert facts["queries left out"] in (tmp_path / "out/README.md").read_text()
    assert "images:" in said  # what was encoded for the first run serves the second
    code, said, facts = run("--prompt", "point")
    assert code == 0 and "for 1 (1.jpg, disc) the box's centre stands in" in said and "images:" not in said
    assert "12 queries" in facts["dataset"] and facts["queries left out"] == "none"


def test_a_box_of_the_first_pixel_can_be_a_query() -> None:
    assert box_of((0, 0, 1, 1)) == Point(0, 0, radius=0)
    assert box_of((0, 0, 2, 1)).x1 == 2  # type: ignore[union-attr]
