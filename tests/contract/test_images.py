"""Images: headers, orientation, every kind of pixel, and files that are broken."""

from __future__ import annotations

import hashlib
import io
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
from phs_milvus.contract.images import (
    FORMATS,
    EncodedImage,
    decode_native,
    decode_upright,
    load_image,
    open_header,
    upright,
)

# 3x2 pixels, all different, none symmetric.
STORED = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]], dtype=np.uint8
)
# EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 belong in the picture.
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: np.rot90(STORED, -1),
    7: np.rot90(STORED, 2).transpose(1, 0, 2),
    8: np.rot90(STORED),
}


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(orientation: int, format: str, scale: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.kron(STORED, np.ones((scale, scale, 1), dtype=np.uint8))
    return encode(Image.fromarray(stored), format, exif=exif, **options)


def pixels(data: bytes) -> np.ndarray:
    image = decode_upright(data)
    assert image.mode == "RGB"
    assert (image.width, image.height) == open_header(data)[:2]
    return np.asarray(image)


def error_of(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    return str(caught.value)


# --- orientation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_every_orientation_in_every_format(orientation: int, format: str, options: dict) -> None:
    scale = 16 if format in ("JPEG", "AVIF") else 1
    data = oriented(orientation, format, scale, **options)
    expected = UPRIGHT[orientation]
    height, width = expected.shape[:2]
    assert open_header(data) == (width * scale, height * scale, format)
    centres = pixels(data)[scale // 2 :: scale, scale // 2 :: scale].astype(int)
    assert np.abs(centres - expected).max() <= (12 if scale > 1 else 0)
    image = load_image(data)
    assert (image.width, image.height, image.data) == (width * scale, height * scale, data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_pil_images_are_turned_once(orientation: int, format: str) -> None:
    opened = Image.open(io.BytesIO(oriented(orientation, format)))
    image = load_image(opened)
    assert np.array_equal(pixels(image.data), UPRIGHT[orientation])
    assert np.array_equal(pixels(load_image(opened).data), UPRIGHT[orientation])
    for again in (
        upright(upright(opened)),
        decode_upright(image.data),
        decode_native(oriented(orientation, format)),
    ):
        assert np.array_equal(pixels(load_image(again).data), UPRIGHT[orientation])


def test_png_exif_after_the_pixels_counts_and_costs_no_decoding() -> None:
    data = oriented(6, "PNG")
    start = data.index(b"eXIf") - 4
    size = 12 + struct.unpack(">I", data[start : start + 4])[0]
    chunk, rest = data[start : start + size], data[:start] + data[start + size :]
    end = rest.index(b"IEND") - 4
    late = rest[:end] + chunk + rest[end:]
    assert open_header(late) == (2, 3, "PNG")
    assert np.array_equal(pixels(late), UPRIGHT[6])
    # Garbage in place of the pixels is not noticed: the header is all that is read.
    position = late.index(b"IDAT") + 4
    assert open_header(late[:position] + b"\xff" * 8 + late[position + 8 :]) == (2, 3, "PNG")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 9])
def test_broken_exif_is_no_reason_to_lose_the_picture(exif: bytes) -> None:
    data = encode(Image.fromarray(STORED), "JPEG", exif=exif)
    assert open_header(data) == (3, 2, "JPEG")
    assert pixels(data).shape == (2, 3, 3)
    assert load_image(Image.open(io.BytesIO(data))).width == 3


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_outside_1_to_8_is_none(value: int) -> None:
    assert np.array_equal(pixels(oriented(value, "PNG")), STORED)


# --- kinds of pixels ----------------------------------------------------------------------------------------


def test_gray_one_bit_and_gray_with_alpha() -> None:
    gray = np.array([[0, 100, 255]], dtype=np.uint8)
    assert pixels(encode(Image.fromarray(gray)))[0].tolist() == [[v] * 3 for v in (0, 100, 255)]
    assert pixels(encode(Image.fromarray(gray > 50)))[0].tolist() == [[v] * 3 for v in (0, 255, 255)]
    alpha = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(np.array([[255, 0, 255]], dtype=np.uint8))])
    assert pixels(encode(alpha))[0].tolist() == [[v] * 3 for v in (0, 255, 255)]


def test_alpha_is_composited_on_white() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (8, 9, 4), dtype=np.uint8)
    share = rgba[..., 3:] / 255
    expected = rgba[..., :3] * share + 255 * (1 - share)
    for data in (
        encode(Image.fromarray(rgba)),
        encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        assert np.abs(pixels(data) - expected).max() <= 1


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert pixels(encode(palette))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    for format in ("PNG", "GIF"):
        assert pixels(encode(palette, format, transparency=1))[0].tolist() == [
            [255, 0, 0],
            [255] * 3,
            [0, 0, 255],
        ]
    some = encode(palette, transparency=bytes([255, 0, 128]))
    assert pixels(some)[0].tolist() == [[255, 0, 0], [255] * 3, [127, 127, 255]]
    # A colour key makes a colour of an RGB image transparent.
    assert pixels(encode(Image.fromarray(STORED), transparency=(0, 255, 0)))[0, 1].tolist() == [255] * 3


def test_sixteen_bits_lose_their_low_byte() -> None:
    wide = np.array([[0, 255, 256, 0x1234, 65535]], dtype=np.uint16)
    expected = [[v >> 8] * 3 for v in wide[0].tolist()]
    png = encode(Image.fromarray(wide))
    assert png[24] == 16  # bit depth
    assert pixels(png)[0].tolist() == expected
    assert pixels(encode(Image.fromarray(wide), "TIFF"))[0].tolist() == expected
    big_endian = b"P5 5 1 65535\n" + wide.astype(">u2").tobytes()
    assert pixels(big_endian)[0].tolist() == expected
    assert pixels(encode(Image.fromarray(wide.astype(np.int32)), "TIFF"))[0].tolist() == expected


def test_sixteen_bit_rgb_png() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    row = b"\0" + np.array([0x1234, 0x00FF, 0xFF00, 65535, 0, 256], dtype=">u2").tobytes()
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels(data)[0].tolist() == [[0x12, 0, 0xFF], [255, 0, 1]]


def test_cmyk_jpeg() -> None:
    cmyk = Image.fromarray(np.full((16, 16, 3), (200, 60, 30), dtype=np.uint8)).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    assert decode_native(data).mode == "CMYK"
    assert np.abs(pixels(data)[8, 8].astype(int) - [200, 60, 30]).max() <= 4


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for format, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert (pixels(data) == [255, 0, 0]).all()


def test_a_pil_animation_gives_its_current_frame() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    opened = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    opened.seek(2)
    assert (pixels(load_image(opened).data) == [0, 0, 255]).all()
    assert opened.tell() == 2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_every_format_is_read(format: str) -> None:
    assert format in FORMATS
    data = encode(Image.new("RGB", (40, 30), (10, 200, 90)), format)
    assert open_header(data) == (40, 30, format)
    assert np.abs(pixels(data).astype(int) - [10, 200, 90]).max() <= 8


# --- sources ------------------------------------------------------------------------------------------------


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


# --- errors -------------------------------------------------------------------------------------------------


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
