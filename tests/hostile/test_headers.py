"""Headers that cost their reader far more than their bytes, or that make it fail with an error of another kind."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import read_header
from tests.hostile.files import chunk, save

# Against hanging only: today's answer takes milliseconds, what it was before takes minutes.
HANGS = 20.0


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def jpeg_without_components() -> bytes:
    data = save(Image.new("RGB", (8, 8)), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2")
    behind = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + b"\xff\xc2" + struct.pack(">HBHHB", 8, 8, 8, 8, 0) + data[behind:]


def heif_of_many_tables() -> bytes:
    """Tables of properties, each as long as one may be."""
    table = box(b"ipma", bytes(4) + struct.pack(">I", 65_000) + bytes(3 * 65_000))
    properties = box(b"iprp", table * 100)
    return box(b"ftyp", b"heic" + bytes(4) + b"heic") + box(b"meta", bytes(4) + properties)


def heif_of_many_boxes() -> bytes:
    properties = box(b"iprp", box(b"ipco", box(b"free", b"") * 4000))
    return box(b"ftyp", b"heic" + bytes(4) + b"heic") + box(b"meta", bytes(4) + properties * 1000)


def jpeg2000_of_many_boxes() -> bytes:
    return box(b"jP  ", b"\r\n\x87\n") + box(b"jp2h", box(b"free", b"") * 4000) * 1000


@pytest.mark.parametrize(
    "make", [jpeg_without_components, heif_of_many_tables, heif_of_many_boxes, jpeg2000_of_many_boxes]
)
def test_a_broken_header_is_an_image_error_soon(make: Callable[[], bytes]) -> None:
    data = make()
    started = time.monotonic()
    with pytest.raises(ImageError, match="broken .*: (no frame|more than|properties in more than)"):
        read_header(data)
    assert time.monotonic() - started < HANGS


def test_one_exif_profile_among_the_texts_of_a_png_is_inflated() -> None:
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"z\n" * 2**19, 9))
    data = save(Image.new("RGB", (8, 8)), "PNG")
    data = data[:33] + bomb * 10_000 + data[33:]
    started = time.monotonic()
    header = read_header(data)
    assert time.monotonic() - started < HANGS
    assert Image.open(io.BytesIO(header.data)).size == (header.width, header.height) == (8, 8)


def tiff_of(width_tags: list[int]) -> bytes:
    """A TIFF directory without pixels: a width for each number, and a height of 8."""
    entries = [struct.pack("<HHII", 256, 4, 1, width) for width in width_tags] + [struct.pack("<HHII", 257, 4, 1, 8)]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def test_a_tiff_with_two_widths_is_refused_and_one_said_twice_is_not() -> None:
    assert read_header(tiff_of([8, 8])).width == 8
    with pytest.raises(ImageError, match="tag 256 twice"):
        read_header(tiff_of([8, 60_000]))
