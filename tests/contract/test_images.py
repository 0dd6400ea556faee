"""Images: orientation and every kind of pixel."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract.images import FORMATS, decode_native, decode_upright, load_image, open_header, upright
from tests.contract.support import STORED, UPRIGHT, encode, oriented, pixels


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
