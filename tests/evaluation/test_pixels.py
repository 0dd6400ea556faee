"""Edits and perturbed prompts: exact at odd sizes and at borders."""

from __future__ import annotations

import numpy as np
import pytest

from phs_milvus.evaluation import edits, perturb

WIDTH, HEIGHT = 41, 31
BOXES = [(0, 0, 5, 3), (36, 28, 41, 31), (7, 9, 8, 10), (0, 0, 41, 31), (3, 0, 38, 31)]


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def mask(box: tuple[int, int, int, int]) -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[box[1] : box[3], box[0] : box[2]] = True
    return inside


@pytest.mark.parametrize("box", BOXES)
def test_crop_is_the_bounding_box(box: tuple) -> None:
    x0, y0, x1, y1 = box
    assert np.array_equal(edits.crop(image(), mask(box)), image()[y0:y1, x0:x1])
    sparse = np.zeros((HEIGHT, WIDTH), bool)
    sparse[y0, x1 - 1] = sparse[y1 - 1, x0] = True
    assert np.array_equal(edits.crop(image(), sparse), image()[y0:y1, x0:x1])


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("edit", [edits.MASK_BLACK, edits.MASK_MEAN, edits.MASK_IMAGE_MEAN, edits.BLUR])
def test_masks_keep_every_pixel_inside_and_none_outside(box: tuple, edit: edits.Edit) -> None:
    inside, original = mask(box), image()
    result = edit.apply(original, inside)
    assert result.dtype == np.uint8 and result.shape == original.shape
    assert np.array_equal(result[inside], original[inside])
    outside = result[~inside]
    if edit is edits.BLUR:
        # A blur mixes neighbours: less varied than the noise it was made of.
        assert not len(outside) or outside.std() < 0.6 * original[~inside].std()
    else:
        fill = {"mask, black": (0, 0, 0), "mask, mean colour": (124, 116, 104)}
        expected = fill.get(edit.name, np.round(original.reshape(-1, 3).mean(axis=0)))
        assert (outside == np.array(expected, np.uint8)).all()


def test_red_circle_is_an_ellipse_in_the_box() -> None:
    original, inside = np.zeros((HEIGHT, WIDTH, 3), np.uint8), mask((10, 5, 31, 26))
    red = (edits.red_circle(original, inside) == (255, 0, 0)).all(axis=2)
    rows, columns = red.nonzero()
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 5, 30, 25)
    distance = np.hypot(columns + 0.5 - 20.5, rows + 0.5 - 15.5)
    assert (abs(distance - 10.5) < 1.5).all() and red.sum() > 40


@pytest.mark.parametrize("share", [-0.3, -0.1, 0.0, 0.1, 0.3])
def test_resized_masks_pixel_by_pixel(share: float) -> None:
    rng = np.random.default_rng(1)
    inside = mask((3, 4, 30, 28)) & (rng.random((HEIGHT, WIDTH)) < 0.97)
    radius = round(abs(share) * inside.sum() ** 0.5)
    expected = np.empty_like(inside)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            around = inside[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            expected[y, x] = around.any() if share >= 0 else around.all()
    if expected.any():
        assert np.array_equal(perturb.resized_mask(inside, share), expected)
    else:
        assert perturb.resized_mask(inside, share).any()


def test_boxes_stay_boxes_inside_the_image() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        box = (35.0, 2.0, 41.0, 9.0) if seed % 2 else (0.0, 0.0, 41.0, 31.0)
        for moved in (
            perturb.shifted_corners(box, 0.5, WIDTH, HEIGHT, rng),
            perturb.rescaled(box, 0.5, WIDTH, HEIGHT, rng),
        ):
            x0, y0, x1, y1 = moved
            assert 0 <= x0 <= x1 - 1 <= WIDTH - 1 and 0 <= y0 <= y1 - 1 <= HEIGHT - 1
        x, y = perturb.displaced((40, 30), box, 0.5, WIDTH, HEIGHT, rng)
        assert 0 <= x < WIDTH and 0 <= y < HEIGHT


def test_no_spread_changes_nothing_and_spread_is_in_box_sizes() -> None:
    box = (300.0, 400.0, 500.0, 500.0)
    rng = np.random.default_rng(0)
    assert perturb.shifted_corners(box, 0, 1000, 1000, rng) == box
    assert perturb.rescaled(box, 0, 1000, 1000, rng) == box
    moved = np.array([perturb.shifted_corners(box, 0.1, 1000, 1000, rng) for _ in range(4000)])
    assert np.allclose(moved.mean(axis=0), box, atol=2)
    assert np.allclose(moved.std(axis=0), [20, 10, 20, 10], rtol=0.06)
    scaled = np.array([perturb.rescaled(box, 0.2, 1000, 1000, rng) for _ in range(4000)])
    assert np.allclose((scaled[:, 0] + scaled[:, 2]) / 2, 400)
    assert abs(np.log((scaled[:, 2] - scaled[:, 0]) / 200).std() - 0.2) < 0.02
