"""Masks on the patch grid are exact area shares, and images are resized without a crop."""

from __future__ import annotations

import io
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract.errors import ImageError, PromptError
from phs_milvus.contract.grid import shares_on_grid
from phs_milvus.contract.images import decode_upright
from phs_milvus.contract.types import Limits, MaskRuns
from phs_server.flow.preprocess import Decode, checked_header, expanded, prepare_image


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (MaskRuns(30, 20, np.array([600], np.uint32)), "selects no pixel"),
        (MaskRuns(20, 30, np.array([0, 600], np.uint32)), "30x20"),
        (MaskRuns(30, 20, np.array([1, 2], np.uint32)), "sum to 3"),
        (MaskRuns(30, 20, np.array([2**32 - 1, 2**32 - 1], np.uint32)), "sum to 8589934590"),
        (MaskRuns(30, 20, np.array([], np.uint32)), "sum to 0"),
    ],
)
def test_wrong_masks_are_named(runs: MaskRuns, message: str) -> None:
    with pytest.raises(PromptError, match=message) as error:
        shares_on_grid(expanded(runs, 30, 20), 4, 4)
    assert error.value.field == "mask"


def test_image_is_squashed_not_cropped() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, :10] = (255, 0, 0)
    wide[:, 30:] = (0, 0, 255)
    pixels, width, height = prepare_image(png(wide), 16, Image.Resampling.BOX, Limits())
    assert (width, height) == (40, 10)
    assert pixels.shape == (3, 16, 16)
    assert pixels[:, 8, 0].tolist() == [255, 0, 0]
    assert pixels[:, 8, 15].tolist() == [0, 0, 255]


def test_limits_are_checked_before_decoding() -> None:
    data = png(np.zeros((100, 100, 3), np.uint8))
    with pytest.raises(ImageError, match="10000 bytes|bytes; this server takes up to 50"):
        prepare_image(data, 16, 3, Limits(image_bytes=50))
    # Cut right after the header: decoding would fail, the pixel limit comes first.
    with pytest.raises(ImageError, match="100x100 pixels"):
        prepare_image(data[:60], 16, 3, Limits(image_pixels=9_999))


def collage(photos: list[Path], columns: int, rows: int, quality: int = 90) -> bytes:
    """A JPEG of columns * 500 x rows * 375 pixels with as much detail as its photos."""
    canvas = Image.new("RGB", (500 * columns, 375 * rows))
    for place, photo in enumerate(islice(cycle(photos), columns * rows)):
        canvas.paste(Image.open(photo).resize((500, 375)), (place % columns * 500, place // columns * 375))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def squashed(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize(("columns", "rows", "decoded"), [(1, 1, (500, 375)), (3, 4, (750, 750)), (8, 8, (1000, 750))])
def test_large_jpegs_are_decoded_small_with_the_same_result(
    columns: int, rows: int, decoded: tuple[int, int], voc: Path, deit: Path
) -> None:
    """The tolerance that `prepare_image` states, on real photos and a real model."""
    from phs_server.model import checkpoint
    from phs_server.model.engine import FocusEngine

    photos = sorted((voc / "JPEGImages").iterdir())
    files = [collage(photos[start:], columns, rows) for start in (0, 100, 200, 300)]
    assert decode_upright(files[0], at_least=3 * 224).size == decoded
    small = np.stack([prepare_image(data, 224, Image.Resampling.BICUBIC, Limits())[0] for data in files])
    full = np.stack([squashed(decode_upright(data), 224) for data in files])
    assert np.abs(small.astype(int) - full).mean() < 0.5
    engine = FocusEngine(checkpoint.load(str(deit)), "cpu", "float32")
    _, no_prompts = engine.sample_batch(4)
    pair = [engine.encode(pixels, no_prompts).embedding for pixels in (small, full)]
    assert (pair[0] * pair[1]).sum(axis=1).min() > 0.995


def test_reduced_decoding_reports_the_full_upright_size() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (1600, 800), "red").save(buffer, "JPEG", exif=exif)
    pixels, width, height = prepare_image(buffer.getvalue(), 32, Image.Resampling.BOX, Limits())
    assert (width, height) == (800, 1600)
    assert decode_upright(buffer.getvalue(), at_least=96).size == (100, 200)
    assert pixels.shape == (3, 32, 32)
    assert pixels[0].min() > 240


def test_a_prompt_without_zoom_sees_the_same_pixels_as_no_prompt() -> None:
    from phs_milvus.contract.types import Focus
    from tests.server.flow.support import view

    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200)).save(buffer, "JPEG")
    plain, width, height = prepare_image(buffer.getvalue(), 56, Image.Resampling.BICUBIC, Limits())
    everything = MaskRuns(width, height, np.array([0, width * height], np.uint32))
    decode = Decode(56, Image.Resampling.BICUBIC, Limits())
    prompted = view(buffer.getvalue(), everything, Focus.paper(), grid=4, decode=decode)
    assert np.array_equal(prompted.pixels, plain)


def test_a_region_of_a_picture_over_the_limit_is_seen_at_reduced_scale() -> None:
    """A phone's 108 megapixels with a zoom: less sharp, and not refused."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    header = checked_header(buffer.getvalue(), Limits())
    region = (200, 100, 600, 500)
    sharp = Decode(56, Image.Resampling.BICUBIC, Limits())(header, region)
    reduced = Decode(56, Image.Resampling.BICUBIC, Limits(image_pixels=1_000_000))(header, region)
    assert np.abs(sharp.astype(int) - reduced).mean() < 2
    with pytest.raises(ImageError, match="1600x1200 pixels; .*--max-image-pixels"):
        Decode(56, Image.Resampling.BICUBIC, Limits(image_pixels=900_000))(header, region)
