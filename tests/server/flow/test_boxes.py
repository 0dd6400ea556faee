"""Boxes around what stands out in a map, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from phs_server.flow.boxes import boxes


def grid(*rows: str) -> np.ndarray:
    """Digits as tenths."""
    return np.array([[int(digit) for digit in row] for row in rows], np.float32) / 10


def test_every_blob_has_its_box_best_first() -> None:
    extent = grid("9800", "7000", "0006", "0000")
    found = boxes(extent, 80, 40, limit=5, threshold=0.5)
    assert [box.region for box in found] == [(0, 0, 40, 20), (60, 20, 80, 30)]
    assert [round(box.score, 2) for box in found] == [0.9, 0.6]
    assert len(boxes(extent, 80, 40, limit=1, threshold=0.5)) == 1


def test_corners_do_not_join_blobs() -> None:
    assert len(boxes(grid("90", "08"), 10, 10, limit=5, threshold=0.5)) == 2


def test_the_threshold_is_a_share_of_the_range() -> None:
    extent = grid("5678")  # from 0.5 to 0.8
    assert boxes(extent, 40, 10, limit=5, threshold=0.6)[0].region == (20, 0, 40, 10)
    assert boxes(extent, 40, 10, limit=5, threshold=0.9)[0].region == (30, 0, 40, 10)


def test_a_flat_map_is_one_box() -> None:
    assert [box.region for box in boxes(grid("33", "33"), 7, 5, limit=5, threshold=None)] == [(0, 0, 7, 5)]


@pytest.mark.parametrize(("width", "height"), [(101, 77), (1, 1), (3, 2)])
def test_boxes_are_whole_pixels_inside_the_image(width: int, height: int) -> None:
    extent = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    for (x0, y0, x1, y1), _ in boxes(extent, width, height, limit=50, threshold=0.6):
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
