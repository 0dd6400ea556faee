"""Images: where they come from, and files that are broken."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.images import EncodedImage, decode_native, decode_upright, load_image, open_header
from tests.contract.support import STORED, encode, error_of, pixels


def test_paths_and_bytes_travel_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "käse.png"
    data = encode(Image.fromarray(STORED))
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    for source in (path, str(path)):
        assert load_image(source) == EncodedImage(data, 3, 2, str(path))
    for source in (data, bytearray(data), memoryview(data)):
        assert load_image(source) == EncodedImage(data, 3, 2, None)
        assert load_image(source).digest == digest
    image = load_image(path)
    assert load_image(image) is image
    assert image.digest is image.digest
    assert repr(image) == f"EncodedImage(width=3, height=2, path={str(path)!r})"


@pytest.mark.parametrize(
    "array",
    [
        STORED,
        STORED[::-1, ::-1],
        np.asfortranarray(STORED),
        np.dstack([STORED, np.full((2, 3), 255, np.uint8)]),
        STORED[..., 0],
        STORED[..., :1],
        STORED[..., 0] > 0,
        (STORED[..., :1] > 0),
        STORED[..., 0].astype(np.uint16) * 257,
        STORED[..., 0].astype(">u2") * 256,
        STORED[..., :1].astype(np.uint16) * 256,
    ],
)
def test_arrays_are_encoded_without_loss(array: np.ndarray) -> None:
    before = array.copy()
    image = load_image(array)
    eight = array * np.uint8(255) if array.dtype == bool else array >> 8 if array.itemsize == 2 else array
    expected = np.broadcast_to(np.atleast_3d(eight)[..., :3], (2, 3, 3))
    assert np.array_equal(pixels(image.data), expected)
    assert (image.width, image.height, image.path) == (3, 2, None)
    assert open_header(image.data) == (3, 2, "PNG")
    assert np.array_equal(array, before)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]), st.integers(0, 2**32 - 1))
def test_encoding_keeps_every_byte(height: int, width: int, channels: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    native = decode_native(load_image(array).data)
    assert np.array_equal(np.atleast_3d(np.asarray(native)), array)


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "I;16",
    ],
)
def test_pil_images_of_every_mode(mode: str) -> None:
    gray = Image.new("L", (6, 5), 255)
    if mode == "LAB":
        image = Image.new("LAB", (6, 5), (255, 128, 128))
    elif mode in ("I", "I;16"):
        image = Image.fromarray(np.full((5, 6), 65535, dtype=np.int32 if mode == "I" else np.uint16))
    elif mode in ("La", "PA"):
        image = gray.convert("LA").convert(mode)
    elif mode == "RGBa":
        image = gray.convert("RGBA").convert(mode)
    elif mode in ("1", "P", "LA", "L"):
        image = gray.convert(mode)
    else:
        image = gray.convert("RGB").convert(mode)
    assert image.mode == mode
    found = pixels(load_image(image).data)
    assert found.shape == (5, 6, 3)
    assert found.min() >= 253
    assert image.mode == mode


def test_a_palette_of_a_pil_image_survives() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 1
    assert pixels(load_image(palette).data)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_errors_name_the_path_and_the_reason(tmp_path: Path) -> None:
    missing, empty, text = tmp_path / "missing.jpg", tmp_path / "empty.jpg", tmp_path / "text.jpg"
    empty.touch()
    text.write_text("hello")
    assert error_of(missing) == f"{missing}: not found"
    assert error_of(tmp_path) == f"{tmp_path}: is a directory"
    assert error_of(empty) == f"{empty}: empty: 0 bytes"
    assert error_of(text).startswith(f"{text}: not an image in a supported format (JPEG, PNG, WEBP, GIF")
    assert error_of("/dev/null") == "/dev/null: not a regular file"
    assert error_of("a\0b").endswith("not found")
    assert error_of(b"") == "image bytes: empty: 0 bytes"
    assert error_of(b"hello").startswith("image bytes: not an image in a supported format")


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.zeros((4, 4), np.float32), "array of float32 [4, 4]; an image array is uint8 [H, W]"),
        (np.zeros((4, 4, 3), np.uint16), "array of uint16 [4, 4, 3]"),
        (np.zeros((4, 4, 3), bool), "array of bool [4, 4, 3]"),
        (np.zeros((4, 4), np.int64), "array of int64 [4, 4]"),
        (np.zeros((3, 4, 4, 3), np.uint8), "array of shape [3, 4, 4, 3]"),
        (np.zeros((3, 224, 224), np.uint8), "array of shape [3, 224, 224]"),
        (np.zeros(4, np.uint8), "array of shape [4]"),
        (np.zeros((0, 4), np.uint8), "array of shape [0, 4] has no pixels"),
        (np.zeros((4, 0, 3), np.uint8), "array of shape [4, 0, 3] has no pixels"),
        (Image.new("RGB", (0, 5)), "the PIL image is 0x5: it has no pixels"),
        (Image.new("F", (2, 2)), "float pixels have no defined white"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "32-bit pixels outside 0..65535"),
        (Image.fromarray(np.full((2, 2), -1, np.int32)), "32-bit pixels outside 0..65535"),
        ([[1, 2], [3, 4]], "cannot read an image from list; give a path"),
        (None, "cannot read an image from NoneType"),
        (3, "cannot read an image from int"),
    ],
)
def test_unsupported_sources_say_what_is_allowed(array: object, text: str) -> None:
    assert text in error_of(array)


def test_float_tiff_is_refused_when_decoded() -> None:
    data = encode(Image.new("F", (2, 2)), "TIFF")
    assert open_header(data) == (2, 2, "TIFF")
    with pytest.raises(ImageError, match="float pixels"):
        decode_upright(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_truncated_files(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    data = encode(noise, format)
    with pytest.raises(ImageError):
        decode_upright(data[: len(data) // 2])
    for length in range(0, len(data), max(1, len(data) // 40)):
        with suppress(ImageError):
            open_header(data[:length])
            decode_upright(data[:length])


CORRUPTIBLE = {
    format: encode(Image.fromarray(STORED).resize((24, 16)), format)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
}


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(CORRUPTIBLE)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_corrupt_files_decode_or_raise_image_error(format: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(CORRUPTIBLE[format])
    for position, value in changes:
        data[position % min(len(data), 200)] = value
    with suppress(ImageError):
        width, height, _ = open_header(bytes(data))
        if width * height < 10**6:
            assert decode_upright(bytes(data)).size == (width, height)


def test_bombs_cost_their_header_only_and_do_not_warn() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (12_000, 60_000):  # over Pillow's warning, and over its error
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_header(bomb) == (side, side, "PNG")
            assert load_image(bomb).width == side


def test_postscript_is_never_interpreted() -> None:
    eps = encode(Image.new("RGB", (4, 4)), "EPS")
    assert "not an image in a supported format" in error_of(eps)
