"""Masks as pictures: soft and hard ones, labels, paint layers, palettes; what is uncertain is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.masks import read_mask
from phs_milvus.pointing.prompts import Mask, to_array

W, H = 160, 120
DISC = np.hypot(*(np.mgrid[:H, :W] - np.array([60, 70])[:, None, None])) < 30


def read(source: object) -> np.ndarray:
    return to_array(Mask(source), W, H)  # type: ignore[arg-type]


def error_of(source: object) -> str:
    with pytest.raises(PromptError) as caught:
        read(source)
    return str(caught.value)


def overlap(mask: np.ndarray) -> float:
    return float((mask & DISC).sum() / (mask | DISC).sum())


def soft(top: int = 255) -> np.ndarray:
    """A probability map: up to `top`, noise of 0 to 2 outside."""
    blurred = Image.fromarray(DISC.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(6))
    noise = np.random.default_rng(0).integers(0, 3, (H, W))
    return np.maximum(np.asarray(blurred).astype(int) * top // 255, noise)


@pytest.mark.parametrize("form", ["file", "array", "RGB", "LA", "16-bit"])
def test_soft_masks_are_cut_in_the_middle(form: str, tmp_path: Path) -> None:
    values = soft().astype(np.uint8)
    sources = {
        "array": values,
        "RGB": Image.fromarray(values).convert("RGB"),
        "LA": Image.fromarray(values).convert("LA"),
        "16-bit": values.astype(np.uint16) * 257,
    }
    if form == "file":
        Image.fromarray(values).save(tmp_path / "soft.png")
        sources["file"] = tmp_path / "soft.png"
    assert overlap(read(sources[form])) > 0.95


def test_a_soft_mask_in_alpha_and_one_in_colour() -> None:
    layer = np.dstack([np.full((H, W, 3), (200, 30, 30)), soft()]).astype(np.uint8)
    assert overlap(read(Image.fromarray(layer))) > 0.95
    faint = np.dstack([np.full((H, W, 3), (200, 30, 30)), soft(127)]).astype(np.uint8)  # a brush of half opacity
    assert overlap(read(Image.fromarray(faint))) > 0.95
    tinted = (soft()[..., None] * np.array([1, 0.5, 0.2])).astype(np.uint8)
    assert overlap(read(Image.fromarray(tinted))) > 0.95


@pytest.mark.parametrize("values", [(1,), (7,), (127,), (128,), (255,), (1, 2, 3), tuple(range(1, 30))])
def test_few_small_values_are_labels(values: tuple[int, ...]) -> None:
    labels = np.zeros((H, W), np.uint8)
    labels[DISC] = np.resize(values, DISC.sum())
    assert np.array_equal(read(labels), DISC)
    assert np.array_equal(read(Image.fromarray(labels)), DISC)


def test_numbers_of_things_in_wide_integers_are_labels() -> None:
    for dtype, values in ((np.uint16, (26001, 26002, 33000)), (np.int64, (70_000, 5)), (np.int32, (-1, 300))):
        labels = np.zeros((H, W), dtype)
        labels[DISC] = np.resize(values, DISC.sum())
        assert np.array_equal(read(labels), DISC)


def test_values_that_may_mean_two_things_are_refused() -> None:
    assert "soft, or labels? threshold it first, for example mask > 50" in error_of(soft(100).astype(np.uint8))
    unknown = np.where(DISC, np.uint8(15), np.uint8(0))
    unknown[:40, :40], unknown[0, :20] = 5, 255
    assert "values 5, 15, 255 look like labels; say which one you mean" in error_of(unknown)


@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_strokes_on_a_transparent_layer_are_inside_whatever_their_colour(colour: str, tmp_path: Path) -> None:
    layer = Image.new("RGBA", (W, H), (0, 0, 0, 0))
    ImageDraw.Draw(layer).ellipse((41, 31, 99, 89), fill=colour)
    layer.save(tmp_path / "layer.png")
    assert overlap(read(tmp_path / "layer.png")) > 0.97
    layer.quantize(8).save(tmp_path / "palette.png")
    assert overlap(read(tmp_path / "palette.png")) > 0.97
    assert "mask: empty" in error_of(Image.new("RGBA", (W, H), (0, 0, 0, 0)))


def test_black_on_white_is_refused() -> None:
    paper = np.where(DISC, np.uint8(0), np.uint8(255))
    for source in (Image.fromarray(paper), Image.fromarray(paper).convert("P"), Image.fromarray(paper).convert("RGBA")):
        assert "black on white?" in error_of(source)
    assert np.array_equal(read(paper == 255), ~DISC)  # said plainly
    assert read(Image.new("L", (W, H), 255)).all()


def test_palette_masks_go_by_their_colours() -> None:
    """As in PASCAL VOC: each object in a colour of its own, some of them dark."""
    labels = Image.fromarray(np.where(DISC, np.uint8(1), np.uint8(0)) + (np.arange(W) > 70) * DISC.astype(np.uint8))
    labels.putpalette([0, 0, 0, 64, 0, 0, 0, 128, 128])
    assert labels.mode == "P" and np.array_equal(read(labels), DISC)


def test_formats_with_loss_are_refused_alike(tmp_path: Path) -> None:
    image = Image.fromarray(DISC.astype(np.uint8) * 255).convert("RGB")
    for name, options, word in (
        ("a.jpg", {}, "JPEG"),
        ("a.webp", {"quality": 40}, "lossy WebP"),
        ("b.webp", {"quality": 40, "save_all": True, "append_images": [Image.new("RGB", (W, H))]}, "lossy WebP"),
        ("a.avif", {}, "AVIF"),
    ):
        image.save(tmp_path / name, **options)
        assert f"is a {word}, whose black is not exactly black; give a PNG" in error_of(tmp_path / name)
    image.save(tmp_path / "c.webp", lossless=True)
    assert np.array_equal(read_mask(tmp_path / "c.webp", W, H), DISC)
