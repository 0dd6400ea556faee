"""Prompts -> masks: geometry pixel by pixel, COCO run lengths against pycocotools, and what errors say."""

from __future__ import annotations

import math
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.types import MaskRuns
from phs_milvus.pointing.prompts import (
    DEFAULT_RELATIVE_RADIUS,
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

W, H = 13, 9
masks = st.integers(1, 12).flatmap(
    lambda h: st.integers(1, 12).flatmap(
        lambda w: st.lists(st.booleans(), min_size=h * w, max_size=h * w).map(
            lambda bits: np.array(bits, dtype=bool).reshape(h, w)
        )
    )
)
set_masks = masks.filter(np.any)
coordinates = st.floats(-20, 30, allow_nan=False)


def rectangle(x0: int, y0: int, x1: int, y1: int, width: int = W, height: int = H) -> np.ndarray:
    expected = np.zeros((height, width), dtype=bool)
    expected[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return expected


def error_of(prompt: object, width: int = W, height: int = H) -> str:
    with pytest.raises(PromptError) as caught:
        to_array(prompt, width, height)  # type: ignore[arg-type]
    assert caught.value.field in ("prompt", "mask")
    return str(caught.value)


# --- boxes --------------------------------------------------------------------------------------------------


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


# --- points -------------------------------------------------------------------------------------------------


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


# --- polygons -----------------------------------------------------------------------------------------------


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


# --- masks --------------------------------------------------------------------------------------------------


@given(set_masks)
def test_runs_round_trip(mask: np.ndarray) -> None:
    height, width = mask.shape
    runs = to_runs(Mask(mask), width, height)
    assert runs is not None
    assert (runs.width, runs.height, int(runs.runs.sum())) == (width, height, width * height)
    assert np.array_equal(runs.to_array(), mask)
    assert np.array_equal(to_array(Mask(runs), width, height), mask)


@given(set_masks)
def test_coco_rle_is_read_as_pycocotools_writes_it(mask: np.ndarray) -> None:
    height, width = mask.shape
    compressed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    columns = mask.T.reshape(-1)
    edges = np.concatenate(([0], np.flatnonzero(columns[1:] != columns[:-1]) + 1, [columns.size]))
    counts = ([0] if columns[0] else []) + np.diff(edges).tolist()
    assert coco.frPyObjects({"size": [height, width], "counts": counts}, height, width) == compressed
    for rle in (
        compressed,
        {**compressed, "counts": compressed["counts"].decode()},
        {"size": [height, width], "counts": counts},
        {"size": np.array([height, width]), "counts": np.array(counts)},
    ):
        assert np.array_equal(to_array(Mask(rle), width, height), mask)


def test_a_large_rle_is_read_as_pycocotools_writes_it() -> None:
    noise = np.random.default_rng(0).random((300, 400)) < np.linspace(0, 1, 400)
    rle = coco.encode(np.asfortranarray(noise, dtype=np.uint8))
    assert np.array_equal(to_array(Mask(rle), 400, 300), noise)


@pytest.mark.parametrize(
    ("rle", "text"),
    [
        ({"size": [9, 13], "counts": [117, -1, 1]}, "the smallest is -1"),
        ({"size": [9, 13], "counts": [100, 10]}, "the sum 110"),
        ({"size": [9, 13], "counts": [100, 18]}, "the sum 118"),
        ({"size": [9, 13], "counts": []}, "the sum 0"),
        ({"size": [9, 13], "counts": [10**18, 10**18]}, "sum to 13x9 = 117"),
        ({"size": [9, 13], "counts": [10**5000]}, "its counts are not"),
        ({"size": [9, 13], "counts": [58.5, 58.5]}, "its counts are not"),
        ({"size": [9, 13], "counts": {"a": 1}}, "its counts are not"),
        ({"size": [9, 13]}, "its counts are not"),
        ({"counts": [117]}, "its size is not"),
        ({"size": "9x", "counts": [117]}, "its size is not"),
        (
            {"size": [10**9, 10**9], "counts": [10**18]},
            "mask is 1000000000x1000000000, but the image is 13x9",
        ),
        ({"size": [13, 9], "counts": [117]}, "mask is 9x13, but the image is 13x9"),
        ({"size": [9, 13], "counts": "1o"}, "end in the middle of a number"),
        ({"size": [9, 13], "counts": b"o" * 1000}, "not COCO's compressed form at character 8"),
        ({"size": [9, 13], "counts": "oooooooo0"}, "not COCO's compressed form at character 8"),
        ({"size": [9, 13], "counts": b"\xff\x00"}, "not COCO's compressed form at character 0"),
        ({"size": [9, 13], "counts": "1é"}, "not COCO's compressed form at character 1"),
        ({"size": [9, 13], "counts": "N0"}, "the smallest is -2"),
        ({"size": [9, 13], "counts": ""}, "the sum 0"),
    ],
)
def test_a_hostile_rle_is_an_error(rle: dict, text: str) -> None:
    assert text in error_of(Mask(rle))


@given(st.binary(max_size=40))
def test_random_rle_bytes_decode_or_raise_prompt_error(counts: bytes) -> None:
    with suppress(PromptError):
        assert to_array(Mask({"size": [H, W], "counts": counts}), W, H).shape == (H, W)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.uint16, np.int8])
def test_mask_arrays_of_any_integer(dtype: type) -> None:
    array = np.zeros((H, W), dtype=dtype)
    array[2:4, 3:6] = -1 if dtype in (np.int64, np.int8) else 1
    assert np.array_equal(to_array(Mask(array), W, H), rectangle(3, 2, 6, 4))
    assert np.array_equal(to_array(Mask(np.asfortranarray(array)), W, H), rectangle(3, 2, 6, 4))


def test_the_source_of_a_mask_is_left_alone() -> None:
    array = rectangle(3, 2, 6, 4)
    to_array([Mask(array), Box(0, 0, W, H), Point(4, 3, label=0)], W, H)
    assert np.array_equal(array, rectangle(3, 2, 6, 4))


@pytest.mark.parametrize("mode", ["1", "L", "I", "I;16", "RGB", "RGBA", "LA", "CMYK"])
def test_mask_images_are_what_is_not_black(mode: str, tmp_path) -> None:
    gray = Image.fromarray(rectangle(3, 2, 6, 4))
    image = gray.convert("RGB").convert(mode) if mode in ("CMYK", "RGB", "RGBA") else gray.convert("L").convert(mode)
    assert np.array_equal(to_array(Mask(image), W, H), rectangle(3, 2, 6, 4))
    if mode not in ("CMYK", "I"):  # which PNG does not have
        image.save(tmp_path / "mask.png")
        assert np.array_equal(to_array(Mask(tmp_path / "mask.png"), W, H), rectangle(3, 2, 6, 4))
        assert np.array_equal(to_array(Mask(str(tmp_path / "mask.png")), W, H), rectangle(3, 2, 6, 4))


def test_palette_masks_go_by_colour_and_transparent_is_outside(tmp_path) -> None:
    inside = rectangle(3, 2, 6, 4)
    white_first = Image.fromarray((~inside).astype(np.uint8))
    white_first = white_first.copy()
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    assert white_first.mode == "P"
    assert np.array_equal(to_array(Mask(white_first), W, H), inside)
    drawn = np.full((H, W, 4), 255, dtype=np.uint8)
    drawn[..., 3] = inside * 255
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    assert np.array_equal(to_array(Mask(tmp_path / "drawn.png"), W, H), inside)


def test_a_mask_file_is_turned_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    upright = rectangle(3, 2, 6, 4)
    Image.fromarray(np.rot90(upright)).save(tmp_path / "mask.png", exif=exif)
    assert np.array_equal(to_array(Mask(tmp_path / "mask.png"), W, H), upright)
    assert np.array_equal(to_array(Mask(Image.open(tmp_path / "mask.png")), W, H), upright)


def test_masks_that_cannot_be_used(tmp_path) -> None:
    (tmp_path / "not.png").write_text("hello")
    Image.new("L", (W, H), 255).save(tmp_path / "mask.jpg")
    other = rectangle(1, 1, 3, 3, 40, 30)
    Image.fromarray(other).save(tmp_path / "other.png")
    runs = MaskRuns(W, H, np.array([5, 5], dtype=np.uint32))
    for source, text in [
        (tmp_path / "none.png", "not found"),
        (tmp_path / "not.png", "not an image"),
        (tmp_path / "mask.jpg", "is a JPEG"),
        (tmp_path / "other.png", "mask is 40x30, but the image is 13x9"),
        (other, "mask is 40x30, but the image is 13x9"),
        (Image.fromarray(other), "mask is 40x30, but the image is 13x9"),
        (MaskRuns.from_array(other), "mask is 40x30, but the image is 13x9"),
        (runs, "runs sum to 10"),
        (np.zeros((H, W), bool), "mask: empty"),
        (np.zeros((1, H, W), bool), "got bool [1, 9, 13]"),
        (np.ones((H, W)), "threshold scores first"),
        (np.full((H, W), "x"), "got <U1 [9, 13]"),
        (Image.new("F", (W, H), 1), "float pixels"),
    ]:
        assert text in error_of(Mask(source)), source  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"mask: expected an array, .* got list"):
        Mask([[0, 1], [1, 0]])  # type: ignore[arg-type]


# --- unions -------------------------------------------------------------------------------------------------


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


def test_large_images_are_fast() -> None:
    corners = [(2000 + 1500 * math.cos(a / 50), 1500 + 1200 * math.sin(a / 50)) for a in range(314)]
    for prompt in (Box(100, 100, 3000, 2000), Point(2000, 1500), Polygon(corners)):
        elapsed = []
        for _ in range(3):
            start = time.perf_counter()
            to_runs(prompt, 4000, 3000)
            elapsed.append(time.perf_counter() - start)
        assert min(elapsed) < 0.5  # a few to twenty milliseconds; the margin is for busy machines


# --- the command line's texts -------------------------------------------------------------------------------


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
