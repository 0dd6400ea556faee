"""Masks: arrays, image files, and COCO run lengths against pycocotools."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.types import MaskRuns
from phs_milvus.pointing.prompts import Box, Mask, Point, to_array, to_runs
from tests.pointing.support import H, W, error_of, rectangle, set_masks


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
