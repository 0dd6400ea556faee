"""Boxes around what stands out in a map, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phs_server.flow.boxes import boxes, finer


def grid(*rows: str) -> np.ndarray:
    """Digits as tenths."""
    return np.array([[int(digit) for digit in row] for row in rows], np.float32) / 10


def test_the_finer_grid_is_linear_between_centres() -> None:
    fine = finer(grid("05"))
    assert fine.shape == (4, 8)
    expected = [0, 0, 0.0625, 0.1875, 0.3125, 0.4375, 0.5, 0.5]
    assert np.allclose(fine, np.tile(expected, (4, 1)), atol=1e-6)
    assert np.allclose(finer(grid("37", "19")).mean(), 0.5) and np.allclose(finer(grid("4")), 0.4)


def test_every_blob_has_its_box_best_first() -> None:
    extent = grid("9900", "9900", "0000", "0009", "0009")
    extent[3:, 3] = 0.85
    found = boxes(extent, 80, 100, limit=5, threshold=0.5)
    # The level is 0.45: about half way between the cells and those of 0.
    assert [box.region for box in found] == [(0, 0, 40, 40), (60, 60, 80, 100)]
    assert [round(box.score, 2) for box in found] == [0.9, 0.85]
    assert len(boxes(extent, 80, 40, limit=1, threshold=0.5)) == 1


def test_corners_do_not_join_blobs() -> None:
    extent = grid("9900", "9900", "0099", "0099")
    assert len(boxes(extent, 40, 40, limit=5, threshold=0.6)) == 2


def test_what_is_less_than_a_patch_is_noise_unless_it_is_the_best() -> None:
    extent = grid("9000", "0000", "0000", "0005")
    assert [box.region[:2] for box in boxes(extent, 40, 40, limit=5, threshold=0.5)] == [(0, 0)]
    assert len(boxes(extent, 40, 40, limit=5, threshold=0.98)) == 1


def test_what_is_much_less_than_the_best_is_left_out() -> None:
    assert len(boxes(grid("9900", "9900", "0000", "0007", "0007"), 80, 100, limit=5, threshold=0.5)) == 1


def test_the_threshold_is_a_share_of_the_range() -> None:
    extent = grid("5678")  # from 0.5 to 0.8
    assert boxes(extent, 160, 10, limit=5, threshold=0.6)[0].region == (90, 0, 160, 10)
    assert boxes(extent, 160, 10, limit=5, threshold=0.9)[0].region == (130, 0, 160, 10)


def test_a_flat_map_is_one_box() -> None:
    assert [box.region for box in boxes(grid("33", "33"), 7, 5, limit=5, threshold=None)] == [(0, 0, 7, 5)]


@pytest.mark.parametrize(("width", "height"), [(101, 77), (1, 1), (3, 2)])
def test_boxes_are_whole_pixels_inside_the_image(width: int, height: int) -> None:
    extent = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    for (x0, y0, x1, y1), _ in boxes(extent, width, height, limit=50, threshold=0.6):
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
