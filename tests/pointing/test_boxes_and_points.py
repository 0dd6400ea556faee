"""Boxes and points, pixel by pixel, and what their errors say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.prompts import DEFAULT_RELATIVE_RADIUS, Box, Point, to_array
from tests.pointing.support import H, W, coordinates, error_of, rectangle


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(0, 0, W, H), (0, 0, W, H)),
        (Box(2, 3, 5, 7), (2, 3, 5, 7)),
        (Box(2.9, 3.9, 5.1, 7.1), (2, 3, 6, 8)),
        (Box(4.2, 4.4, 4.3, 4.5), (4, 4, 5, 5)),
        (Box(-5, -5, 3, 3), (0, 0, 3, 3)),
        (Box(10, 7, 1e300, 1e300), (10, 7, W, H)),
        (Box(-1.7e308, -1e300, 1.7e308, 1e300), (0, 0, W, H)),
        (Box(np.float32(2), np.int64(3), np.uint8(5), np.float16(7)), (2, 3, 5, 7)),
    ],
)
def test_a_box_is_every_pixel_it_touches(box: Box, expected: tuple[int, int, int, int]) -> None:
    assert np.array_equal(to_array(box, W, H), rectangle(*expected))


@pytest.mark.parametrize("box", [(13, 0, 20, 5), (0, 9, 5, 12), (-5, 0, 0, 5), (0, -1, 5, 0), (1e300, 0, 1.1e300, 5)])
def test_a_box_outside_is_an_error(box: tuple[float, ...]) -> None:
    assert "entirely outside the 13x9 image" in error_of(Box(*box))


def test_the_error_of_a_box_outside_gives_box_image_and_frame() -> None:
    assert error_of(Box(900, 10, 950, 60), 640, 480) == (
        "box (900, 10, 950, 60) lies entirely outside the 640x480 image; "
        "prompts are pixels of the upright image (after EXIF rotation)"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((9, 0, 5, 5), "box: x1 (5) must be greater than x0 (9)"),
        ((0, 5, 5, 5), "box: y1 (5) must be greater than y0 (5)"),
        ((math.nan, 0, 5, 5), "box: x0 must be finite, got nan"),
        ((0, 0, math.inf, 5), "box: x1 must be finite, got inf"),
        ((0, 0, 10**400, 5), "box: x1 must be finite, got inf"),
        (("0", 0, 5, 5), "box: x0 must be a number, got str '0'"),
        ((0, None, 5, 5), "box: y0 must be a number, got NoneType None"),
        ((True, 0, 5, 5), "box: x0 must be a number, got bool True"),
        ((np.array([1, 2]), 0, 5, 5), "box: x0 must be a number, got ndarray array([1, 2])"),
    ],
)
def test_a_malformed_box_says_what_is_wrong(values: tuple, text: str) -> None:
    with pytest.raises(PromptError) as caught:
        Box(*values)
    assert str(caught.value) == text


@given(x=coordinates, y=coordinates, radius=st.floats(0, 25))
def test_a_point_is_the_pixels_whose_centres_lie_within_the_radius(x: float, y: float, radius: float) -> None:
    rows, columns = np.mgrid[:H, :W] + 0.5
    distance = np.hypot(columns - x, rows - y)
    own = (np.floor(x) == columns - 0.5) & (np.floor(y) == rows - 0.5)
    surely, maybe = (distance < radius - 1e-9) | own, (distance < radius + 1e-9) | own
    if not surely.any():
        return
    found = to_array(Point(x, y, radius), W, H)
    assert np.array_equal(found | surely, found)
    assert np.array_equal(found & maybe, found)


def test_the_radius_of_a_point() -> None:
    assert to_array(Point(50, 50, radius=10), 100, 200).sum() == pytest.approx(math.pi * 100, rel=0.05)
    assert np.array_equal(to_array(Point(50, 50, relative_radius=0.1), 100, 200), to_array(Point(50, 50, 10), 100, 200))
    assert np.array_equal(
        to_array(Point(50, 50), 200, 100), to_array(Point(50, 50, DEFAULT_RELATIVE_RADIUS * 100), 200, 100)
    )
    assert np.argwhere(to_array(Point(4.7, 6.2, radius=0), W, H)).tolist() == [[6, 4]]


def test_points_partly_and_entirely_outside() -> None:
    assert to_array(Point(-2, 4, radius=3), W, H).any()
    assert to_array(Point(1e50, 4, radius=2e50), W, H).all()
    assert to_array(Point(4, 4, radius=1.7e308), W, H).all()
    for point in [
        Point(-3, 4, radius=2),
        Point(1e300, 4),
        Point(W, 4, radius=0),
        Point(4, -1.7e308, radius=1e300),
    ]:
        assert "lies entirely outside the 13x9 image" in error_of(point)


def test_negative_points_are_taken_from_the_union_wherever_they_stand() -> None:
    expected = rectangle(0, 0, W, H) & ~to_array(Point(6, 4, 2), W, H)
    box, hole = Box(0, 0, W, H), Point(6, 4, 2, label=0)
    for prompt in ([box, hole], [hole, box], hole | box, [[hole], Point(6, 4, 2), box]):
        assert np.array_equal(to_array(prompt, W, H), expected)


def test_negative_points_alone_or_taking_all_are_errors() -> None:
    assert error_of(Point(5, 5, label=0)).startswith("only negative points")
    assert error_of([Point(5, 5, label=0), Point(1, 1, label=0)]).startswith("only negative points")
    assert "take away everything" in error_of([Box(5, 5, 6, 6), Point(5, 5, 4, label=0)])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"radius": -1}, "point: radius (-1) must be 0 or more"),
        ({"relative_radius": -0.5}, "point: relative_radius (-0.5) must be 0 or more"),
        ({"radius": math.nan}, "point: radius must be finite, got nan"),
        ({"radius": 1, "relative_radius": 1}, "point: give radius or relative_radius, not both"),
        ({"label": 2}, "point: label is 1 (select) or 0 (take away), got 2"),
        ({"label": "1"}, "point: label is 1 (select) or 0 (take away), got '1'"),
        ({"x": "3"}, "point: x must be a number, got str '3'"),
        ({"y": None}, "point: y must be a number, got NoneType None"),
    ],
)
def test_a_malformed_point_says_what_is_wrong(values: dict, text: str) -> None:
    with pytest.raises(PromptError) as caught:
        Point(**{"x": 1, "y": 2, **values})
    assert str(caught.value) == text
