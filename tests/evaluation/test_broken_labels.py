"""Labels with any one value replaced: a Dataset or one clear error, never a foreign exception."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.evaluation.datasets import Dataset, load
from phs_milvus.pointing.prompts import to_array
from tests.evaluation.exports import BOXES, SIZE, WRITERS, pictures

pytestmark = pytest.mark.filterwarnings("ignore::phs_milvus.evaluation.datasets.DatasetWarning")

NAMES = ["1.jpg", "2.jpg"]
NUMBERS = [-1, 0, 7, 1e308, float("nan"), float("inf"), True]
ODD = [None, [], {}, "", "x", "..", "\0", *NUMBERS, [1], [[1]], {"a": 1}, "é" * 300]
ENDINGS = (".json", ".jsonl", ".csv", ".xml", ".txt", ".yaml")
TEXTS = ["", "x", "-1", "nan", "1e999", "&amp;", "\x7f", "../..", "0", "9" * 400, "\U0001f431"]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(text: str, odd: Any, choose: random.Random) -> str:
    value = json.loads(text)
    *way, last = choose.choice([path for path in places(value) if path])
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = odd
    return json.dumps(value)


def loaded(path: Path) -> Dataset | None:
    try:
        dataset = load(path)
    except InvalidInput as error:
        assert len(str(error)) < 900
        return None
    for image in dataset.images:
        for entry in image.instances:
            x0, y0, x1, y1 = entry.box
            assert 0 <= x0 < x1 <= SIZE[0] and 0 <= y0 < y1 <= SIZE[1] and entry.label
    return dataset


@pytest.mark.parametrize("writer", list(WRITERS))
def test_any_value_replaced(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    start = WRITERS[writer](tmp_path, NAMES, SIZE, BOXES)
    files = sorted(
        file for file in tmp_path.rglob("*") if file.suffix in (".json", ".jsonl", ".csv", ".xml", ".txt", ".yaml")
    )
    choose = random.Random(writer)
    whole = 0
    for _ in range(60):
        file = choose.choice(files)
        before = file.read_bytes()
        text = before.decode()
        if file.suffix == ".json":
            file.write_text(changed(text, choose.choice(ODD), choose))
        elif file.suffix == ".jsonl":
            first, *others = text.splitlines()
            file.write_text("\n".join([changed(first, choose.choice(ODD), choose), *others]))
        else:
            ends = [i for i, letter in enumerate(text) if letter in '<>",; \n']
            a, b = sorted(choose.sample(ends, 2))
            b = min(b, a + 40)
            file.write_text(text[: a + 1] + choose.choice(TEXTS) + text[b:], "utf-8")
        whole += loaded(start) is not None
        file.write_bytes(before)
    assert whole >= 5  # one bad value seldom spoils the rest, if it leaves the file one of its kind
    assert loaded(start) is not None


@pytest.mark.parametrize("writer", list(WRITERS))
def test_files_cut_off_or_of_other_bytes(writer: str, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    start = WRITERS[writer](tmp_path, NAMES, SIZE, BOXES)
    files = [
        file for file in tmp_path.rglob("*") if file.suffix in (".json", ".jsonl", ".csv", ".xml", ".txt", ".yaml")
    ]
    for file in files:
        before = file.read_bytes()
        for data in (
            b"",
            b"\xff\xfe",
            b"\0" * 9,
            before[: len(before) // 2],
            before.replace(b"disc", b"d\xe9\xff"),
            b"[" * 9999,
        ):
            file.write_bytes(data)
            loaded(start)
        file.write_bytes(before)


@pytest.mark.parametrize("segmentation", [*ODD, [[0] * 8], [["a"] * 8], {"size": [1, 1], "counts": "~"}])
def test_any_outline_is_drawn_or_refused(segmentation: Any, tmp_path: Path) -> None:
    pictures(tmp_path, NAMES)
    path = WRITERS["coco"](tmp_path, NAMES, SIZE, BOXES)
    value = json.loads(path.read_text())
    value["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(value))
    dataset = load(path)
    (disc,) = [entry for entry in dataset.images[0].instances if entry.label == "disc"]
    if disc.segment is not None:
        with suppress(InvalidInput):
            assert to_array(disc.segment(), *SIZE).any()
