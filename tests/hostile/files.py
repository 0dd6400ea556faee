"""What every kind of hostile case is made of: a case, a picture in every format, and parts of a PNG."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, features

ACCEPTED, EITHER = "accepted", "either"
SIZE = (96, 64)


@dataclass(frozen=True)
class Case:
    """One request.

    mask: (width, height, runs) or None; expected: "accepted", "either", or a field.
    """

    name: str
    image: bytes
    expected: str
    mask: tuple[int, int, tuple[int, ...]] | None = None
    heads_on: int | None = None


def save(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def every_format(rng: np.random.Generator) -> dict[str, bytes]:
    """The same picture in every format that Pillow writes here."""
    image = picture(rng)
    files = {
        "jpeg": save(image, "JPEG", quality=90),
        "jpeg-progressive": save(image, "JPEG", progressive=True),
        "png": save(image, "PNG"),
        "webp": save(image, "WEBP"),
        "webp-lossless": save(image, "WEBP", lossless=True),
        "gif": save(image.convert("P"), "GIF"),
        "bmp": save(image, "BMP"),
        "tiff": save(image, "TIFF"),
        "tiff-deflate": save(image, "TIFF", compression="tiff_adobe_deflate"),
        "ppm": save(image, "PPM"),
    }
    if features.check("avif"):
        files["avif"] = save(image, "AVIF")
    if features.check("jpg_2000"):
        files["jp2"] = save(image, "JPEG2000")
    return files


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, idat: bytes | None = None) -> bytes:
    """An 8-bit gray PNG; `idat` defaults to the pixels, all black."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = zlib.compress(bytes((width + 1) * height)) if idat is None else idat
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
