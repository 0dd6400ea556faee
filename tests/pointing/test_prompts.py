"""Unions of prompts, what is no prompt, and the command line's texts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.prompts import (
    Box,
    Mask,
    Point,
    Polygon,
    Union,
    parse_box,
    parse_point,
    parse_polygon,
    to_array,
    to_runs,
)
from tests.pointing.support import H, W, error_of, rectangle


def test_unions_by_list_tuple_operator_and_nesting() -> None:
    a, b, c = Box(0, 0, 3, 3), Polygon([(5, 5), (9, 5), (9, 8), (5, 8)]), Mask(rectangle(10, 0, 12, 2))
    expected = rectangle(0, 0, 3, 3) | rectangle(5, 5, 9, 8) | rectangle(10, 0, 12, 2)
    for prompt in (
        [a, b, c],
        (a, b, c),
        a | b | c,
        (a | b) | (c | a),
        [a, b] | c,
        a | [b, c],
        [a, [b, (c,)]],
    ):
        assert np.array_equal(to_array(prompt, W, H), expected)
    assert a | b | a == Union((a, b, a))


def test_an_error_in_a_union_names_the_member() -> None:
    assert error_of([Box(0, 0, 3, 3), Box(50, 50, 60, 60)]).startswith("prompt[1]: box (50, 50, 60, 60) lies")
    assert error_of([Point(99, 1, label=0), Box(0, 0, 3, 3)]).startswith("prompt[0]: point (99, 1)")
    assert error_of(Box(0, 0, 3, 3) | Box(1, 1, 2, 2) | Mask(np.zeros((H, W), bool))).startswith("prompt[2]: mask")
    assert error_of([Box(0, 0, 3, 3), [Box(0, 0, 2, 1), Point(99, 99)]]).startswith("prompt[1][1]: point")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ([], "prompt: an empty list selects nothing"),
        ([Box(0, 0, 2, 1), []], "prompt[1]: an empty list"),
        ([48, 120, 310, 400], "prompt[0]: expected Point, Box, Polygon, Mask or a list of them, got int 48"),
        (
            "48,120,310,400",
            "prompt: expected Point, Box, Polygon, Mask or a list of them, got str '48,120,310,400'",
        ),
        (np.ones((H, W), bool), "prompt: expected Point, Box, Polygon, Mask or a list of them, got ndarray"),
        ([Box(0, 0, 2, 1), None], "prompt[1]: expected Point"),
        (None, "prompt: expected Point"),
    ],
)
def test_what_is_no_prompt(prompt: object, text: str) -> None:
    assert error_of(prompt).startswith(text)


def test_none_is_the_whole_image() -> None:
    assert to_runs(None, W, H) is None


def test_prompts_are_values() -> None:
    assert Box(0, 0, 3, 3) == Box(0.0, np.float32(0), 3, 3)
    assert len({Point(1, 2), Point(1.0, 2.0), Polygon([(0, 0), (1, 0), (0, 1)])}) == 2


def test_large_images_cost_python_no_step_per_row() -> None:
    """That is what makes them fast: pixels and rows are numpy's work."""

    def steps(scale: int) -> list[int]:
        corners = [(200 + 150 * math.cos(a / 50), 150 + 120 * math.sin(a / 50)) for a in range(314)]
        polygon = Polygon([(scale * x, scale * y) for x, y in corners])
        box, point = Box(10 * scale, 10 * scale, 300 * scale, 200 * scale), Point(200 * scale, 150 * scale)
        width, height = 400 * scale, 300 * scale
        return [python_lines(lambda prompt=prompt: to_runs(prompt, width, height)) for prompt in (box, point, polygon)]

    for large, small in zip(steps(10), steps(1), strict=True):
        assert large - small < 2700  # as many rows more


def python_lines(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def test_parsing() -> None:
    assert parse_box("48,120,310,400") == Box(48, 120, 310, 400)
    assert parse_box(" 1.5, 2 ,3e1,4 ") == Box(1.5, 2, 30, 4)
    assert parse_point("320,240") == Point(320, 240)
    assert parse_point("320, 240.5, 25") == Point(320, 240.5, 25)
    assert parse_point("320,240,25,0") == Point(320, 240, 25, label=0)
    assert parse_point("320,240,,0") == Point(320, 240, label=0)
    assert parse_point("-3,-4,2,1") == Point(-3, -4, 2, label=1)
    assert parse_polygon("10,10  200,40 120,300") == Polygon([(10, 10), (200, 40), (120, 300)])


@pytest.mark.parametrize(
    ("parse", "example", "texts"),
    [
        (parse_box, "48,120,310,400", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1 2 3 4", "1,2,,4"]),
        (parse_point, "320,240,25,0", ["", "1", "1,", "a,2", "1,2,x", "1,2,3,4", "1,2,3,", "1,2,3,0,5"]),
        (parse_polygon, "10,10 200,40 120,300", ["", "1,2 3,4", "1,2 3,4 5", "1,2 3,4 5,x", "1,2,3,4,5,6"]),
    ],
)
def test_parsing_errors_show_the_form(parse, example: str, texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(PromptError) as caught:
            parse(text)
        assert f"{text!r}: expected x" in str(caught.value)
        assert str(caught.value).endswith(example)


def test_parsed_values_are_checked_too() -> None:
    with pytest.raises(PromptError, match=r"x1 \(3\) must be greater than x0 \(5\)"):
        parse_box("5,0,3,9")
    with pytest.raises(PromptError, match="x must be finite"):
        parse_point("nan,3")


@settings(max_examples=50)
@given(st.text(max_size=12))
def test_any_text_parses_or_raises_prompt_error(text: str) -> None:
    for parse in (parse_box, parse_point, parse_polygon):
        with suppress(PromptError):
            parse(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_box, "0.1,0.2,0.5,0.8"),
        (parse_box, "0,0,1,1"),
        (parse_point, "0.5,0.25"),
        (parse_polygon, "0,0 1,0 0.5,1"),
    ],
)
def test_shares_of_the_image_are_not_taken_for_pixels(parse, text: str) -> None:
    with pytest.raises(PromptError, match=r"lies within the first pixel; .* multiply shares of the image \(0 to 1\)"):
        parse(text)


def test_a_box_of_shares_is_refused_and_its_neighbours_are_not() -> None:
    with pytest.raises(PromptError, match="lies within the first pixel"):
        Box(0.25, 0, 1, 0.5)
    for box in (Box(0, 0, 1.5, 1), Box(-0.5, 0, 1, 1), Box(0, 1, 1, 2)):
        assert to_array(box, W, H).any()
    assert to_array(Point(0, 0, radius=0), W, H).sum() == 1
    assert parse_point("0,0,0") == Point(0, 0, radius=0)
