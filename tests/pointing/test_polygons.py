"""Polygons against the even-odd rule, pixel by pixel, and what their errors say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.prompts import Box, Polygon, to_array
from tests.pointing.support import H, W, coordinates, error_of


@given(
    st.integers(-5, 15),
    st.integers(-5, 12),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 3),
    st.booleans(),
)
def test_the_polygon_of_integer_corners_is_the_box(
    x0: int, y0: int, width: int, height: int, start: int, clockwise: bool
) -> None:
    x1, y1 = x0 + width, y0 + height
    assume((x0, y0, x1, y1) != (0, 0, 1, 1))  # which Box refuses, as shares of the image
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    corners = corners[start:] + corners[:start]
    polygon = Polygon(corners if clockwise else corners[::-1])
    try:
        expected = to_array(Box(x0, y0, x1, y1), W, H)
    except PromptError:
        assert "entirely outside" in error_of(polygon)
        return
    assert np.array_equal(to_array(polygon, W, H), expected)


def even_odd(corners: list[tuple[float, float]], x: float, y: float) -> bool:
    inside = False
    for (xa, ya), (xb, yb) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (ya <= y) != (yb <= y) and x >= xa + (y - ya) / (yb - ya) * (xb - xa):
            inside = not inside
    return inside


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=8))
def test_a_polygon_is_the_even_odd_rule_at_pixel_centres(corners: list[tuple[float, float]]) -> None:
    expected = np.array([[even_odd(corners, x + 0.5, y + 0.5) for x in range(W)] for y in range(H)])
    if expected.any():
        assert np.array_equal(to_array(Polygon(corners), W, H), expected)


def test_a_star_has_a_hole_and_two_triangles_share_no_pixel() -> None:
    tips = [(50 + 45 * math.sin(i * 0.8 * math.pi), 50 - 45 * math.cos(i * 0.8 * math.pi)) for i in range(5)]
    star = to_array(Polygon(tips), 100, 100)
    assert not star[50, 50]
    assert star[12, 50]
    upper = to_array(Polygon([(0, 0), (W, 0), (W, H)]), W, H)
    lower = to_array(Polygon([(0, 0), (W, H), (0, H)]), W, H)
    assert not (upper & lower).any()
    assert (upper | lower).all()


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ([(2.1, 3.6), (6.9, 3.6), (6.9, 3.9)], {(3, x) for x in range(2, 7)}),
        ([(4.1, 1.2), (4.2, 5.5), (4.3, 1.2)], {(y, 4) for y in range(1, 6)}),
        ([(3, 0), (3, 2), (3, 1)], {(0, 3), (1, 3)}),
        ([(5, 5)] * 3, {(5, 5)}),
        ([(-4, 4.8), (1.5, 4.9), (-4, 4.9)], {(4, 0), (4, 1)}),
        ([(0.6, 0.1), (3.6, 3.1), (0.6, 0.1)], {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)}),
    ],
)
def test_a_sliver_selects_the_pixels_its_outline_crosses(
    corners: list[tuple[float, float]], expected: set[tuple[int, int]]
) -> None:
    assert {tuple(p) for p in np.argwhere(to_array(Polygon(corners), W, H)).tolist()} == expected


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=6))
def test_a_polygon_with_a_corner_inside_selects_something(corners: list[tuple[float, float]]) -> None:
    if any(0 < x < W and 0 < y < H for x, y in corners):
        assert to_array(Polygon(corners), W, H).any()


def test_polygons_outside_and_far_away() -> None:
    for corners in (
        [(20, 1), (30, 1), (25, 5)],
        [(W, 0), (W + 5, 0), (W, 5)],
        [(-9, 0), (0, 0), (0, 5), (-9, 5)],
    ):
        assert error_of(Polygon(corners)).startswith(f"polygon of {len(corners)} points lies entirely outside")
    far = 1.7e308
    assert to_array(Polygon([(-far, -far), (far, -far), (far, far), (-far, far)]), W, H).all()
    assert to_array(Polygon([(0, 0), (1e300, 0), (1e300, 1e300), (0, 1e300)]), W, H).all()


def test_polygon_points_may_be_an_array() -> None:
    corners = [(1, 1), (8, 2), (4, 7)]
    assert Polygon(np.array(corners, dtype=np.float32)) == Polygon(corners)


@pytest.mark.parametrize("points", [[], [(1, 2), (3, 4)], [(1, 2), (3, 4), (5,)], [1, 2, 3], "abc", None, 5])
def test_a_polygon_needs_three_pairs(points: object) -> None:
    with pytest.raises(PromptError, match="at least 3 points"):
        Polygon(points)  # type: ignore[arg-type]


def test_a_polygon_names_the_bad_point() -> None:
    with pytest.raises(PromptError, match="polygon: point 2 must be finite, got nan"):
        Polygon([(0, 0), (1, 1), (2, math.nan)])
