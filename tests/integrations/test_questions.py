"""What frameworks' users may ask with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from phs_milvus.contract.errors import InvalidInput, PhsError
from phs_milvus.integrations.questions import prompt_of, question_of
from phs_milvus.pointing.prompts import Box, Point, Polygon
from phs_milvus.search.queries import Examples, Query

BOX = Box(40, 60, 180, 220)


@pytest.mark.parametrize(
    ("value", "query"),
    [
        (Query("a.jpg", BOX), Query("a.jpg", BOX)),
        ({"image": "a.jpg", "box": [40, 60, 180, 220]}, Query("a.jpg", BOX)),
        ({"image": "a.jpg", "prompt": BOX}, Query("a.jpg", BOX)),
        ({"image": "a.jpg", "prompt": {"box": (40, 60, 180, 220)}}, Query("a.jpg", BOX)),
        ({"image": "a.jpg", "point": [5, 6]}, Query("a.jpg", Point(5, 6))),
        ({"image": "a.jpg", "point": [5, 6, 9]}, Query("a.jpg", Point(5, 6, 9))),
        ({"image": "a.jpg", "polygon": [[0, 0], [9, 0], [0, 9]]}, Query("a.jpg", Polygon([(0, 0), (9, 0), (0, 9)]))),
        ({"image": "a.jpg", "point": [5, 6], "box": [40, 60, 180, 220]}, Query("a.jpg", [BOX, Point(5, 6)])),
        ({"image": b"\xff\xd8"}, Query(b"\xff\xd8")),
        ("a.jpg", Query("a.jpg")),
        ("a.jpg:40,60,180,220", Query("a.jpg", BOX)),
        ("C:/a:b/a.jpg:40, 60, 180, 220.0", Query("C:/a:b/a.jpg", BOX)),
        ("a.jpg:-4,60,180,220", Query("a.jpg", Box(-4, 60, 180, 220))),
        ("a.jpg:40,60,180", Query("a.jpg:40,60,180")),
    ],
)
def test_every_form_gives_the_same_query(value: Any, query: Any) -> None:
    assert question_of(value) == query


def test_several_examples_are_of_any_form() -> None:
    asked = {"like": ["a.jpg:40,60,180,220", {"image": "b.jpg"}], "unlike": ["c.jpg"]}
    assert question_of(asked) == Examples([Query("a.jpg", BOX), Query("b.jpg")], [Query("c.jpg")])


def test_a_mask_is_one_of_the_shapes() -> None:
    mask = np.ones((3, 4), bool)
    prompt = prompt_of({"mask": mask})
    assert prompt.source is mask
    assert prompt_of(None) is None and prompt_of(BOX) is BOX


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "empty; give an image and a box"),
        ({}, "has nothing; a query has image"),
        ({"picture": "a.jpg"}, "has picture; a query has image"),
        ({"image": "a.jpg", "bbox": [1, 2, 3, 4]}, "has image, bbox; a query has image"),
        ({"image": "a.jpg", "box": [1, 2, 3, 4], "prompt": BOX}, "has prompt and box; give one"),
        ({"image": "a.jpg", "box": [1, 2, 3]}, r"box is x0, y0, x1, y1 in pixels, got \[1, 2, 3\]"),
        ({"image": "a.jpg", "box": "1,2,3,4"}, "box is x0, y0, x1, y1"),
        ({"image": "a.jpg", "point": 7}, "point is x, y or x, y, radius in pixels, got 7"),
        ({"image": "a.jpg", "box": [9, 9, 1, 1]}, "x1 .1. must be greater"),
        ({"image": "a.jpg", "prompt": {}}, "has nothing; a prompt has box"),
        ({"like": []}, "at least one example"),
        ({"like": ["a.jpg"], "image": "b.jpg"}, "several examples have like and unlike"),
        ({"like": [{"like": ["a.jpg"]}]}, "an example is a Query or an Encoding, got Examples"),
    ],
)
def test_what_is_no_question_is_named(value: Any, text: str) -> None:
    with pytest.raises(InvalidInput, match=text) as error:
        question_of(value)
    assert isinstance(error.value, PhsError) and error.value.field
