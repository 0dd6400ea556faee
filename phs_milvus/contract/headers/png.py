"""PNG: only the chunks that make pixels are kept, so that no text or profile is ever inflated."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.exif import orientation_of
from phs_milvus.contract.headers.header import Broken, Header

_SIGNATURE = 8
_KEPT = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_MAX_CHUNKS = 65_536
_MAX_PROFILE = 2**20


def read(data: bytes) -> Header:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise Broken("no IHDR chunk")
    width, height = struct.unpack_from(">II", data, 16)
    kept = [(0, _SIGNATURE)]
    exif = xmp = None
    profiles = 0
    position = _SIGNATURE
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        size, kind = struct.unpack_from(">I4s", data, position)
        body, behind = position + 8, position + 12 + size  # length, type, payload, checksum
        if kind in _KEPT:
            start = kept.pop()[0] if kept[-1][1] == position else position
            kept.append((start, behind))
        elif kind == b"eXIf":  # often behind the pixels
            exif = data[body : body + size]
        elif kind == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0", body):
            xmp = data[body : body + size]
        elif kind in (b"tEXt", b"zTXt") and data.startswith(b"Raw profile type exif\0", body):
            profiles += 1
            if exif is None and profiles == 1:  # each may inflate to a MiB
                exif = _raw_profile(data[body + 22 : body + size], compressed=kind == b"zTXt")
        if kind == b"IEND":
            break
        position = behind
    else:
        raise ImageError(f"the PNG image has more than {_MAX_CHUNKS:,} chunks")
    plain = data if kept == [(0, position + 12)] else b"".join(data[start:end] for start, end in kept)
    return Header("PNG", width, height, plain, orientation_of(exif, xmp))


def _raw_profile(text: bytes, compressed: bool) -> bytes | None:
    """EXIF as ImageMagick writes it: hexadecimal, below a line with its name and one with its size."""
    with suppress(zlib.error, ValueError):
        if compressed:
            text = zlib.decompressobj().decompress(text[1:], _MAX_PROFILE)
        return bytes.fromhex("".join(text[:_MAX_PROFILE].decode("latin-1").split("\n")[3:]))
    return None
