"""What the header of an encoded image says, read in milliseconds whatever the bytes are: no decoder is asked.

The formats are a closed list. Pillow's `Image.open` is not used: it hands files to every reader that it knows (EPS
starts Ghostscript), reads some headers byte by byte or in quadratic time, and for others starts the decoder. The
readers here look at a bounded number of segments, chunks or boxes, and pass on a file without metadata.

Left out on purpose: run-length encoded BMP, which Pillow decodes in Python, half a minute for 15 MB; PSD, ICO, TGA,
PCX, SVG, PDF and the like, which are no photographs, or are programs.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import bmp, gif, heif, jpeg, jpeg2000, png, ppm, tiff, webp
from phs_milvus.contract.headers.header import MAX_SIDE, Broken, Header

__all__ = ["FORMATS", "MAX_SIDE", "SIGNATURE_BYTES", "Header", "format_of", "lossy_format", "read_header"]

_READERS: tuple[tuple[str, re.Pattern[bytes], Callable[[bytes], Header]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), jpeg.read),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), png.read),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL), webp.read),
    ("GIF", re.compile(rb"GIF8[79]a"), gif.read),
    ("BMP", re.compile(rb"BM"), bmp.read),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), tiff.read),
    ("AVIF", re.compile(rb"....ftyp(avif|avis)", re.DOTALL), heif.read),
    ("HEIF", re.compile(rb"....ftyp(mif1|miaf|msf1|hei[cxms]|hev[cxms])", re.DOTALL), heif.read),
    ("JPEG2000", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), jpeg2000.read),
    ("PPM", re.compile(rb"P[1-6][\s#]"), ppm.read),
)
FORMATS = tuple(name for name, _, _ in _READERS)
# Enough for every signature.
SIGNATURE_BYTES = 16


def format_of(start: bytes) -> str | None:
    """The format, one of `FORMATS`, of a file that starts like this; None: another one. AVIF may still be HEIF."""
    return next((name for name, signature, _ in _READERS if signature.match(start)), None)


def read_header(data: bytes) -> Header:
    """Reads the header of an encoded image; no pixel is decoded, and time and memory are bounded by the file's size.

    Raises:
        ImageError: empty, not in one of `FORMATS`, a broken header, no pixels, or a side over `MAX_SIDE`.
    """
    if not data:
        raise ImageError("empty: 0 bytes")
    for name, signature, read in _READERS:
        if signature.match(data):
            try:
                return read(data)
            except Broken as error:
                raise ImageError(f"broken {name} header: {error}") from None
            except (IndexError, OverflowError, struct.error):
                raise ImageError(f"broken {name} header: it points outside the file") from None
    raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)})")


def lossy_format(data: bytes) -> str | None:
    """What to call a file whose pixels are not exactly those that were saved; None where they may be.

    Raises:
        ImageError: as `read_header`.
    """
    name = read_header(data).format
    if name == "WEBP" and webp.is_lossy(data):
        return "lossy WebP"
    return name if name in ("JPEG", "AVIF", "HEIF") else None
