"""WebP: the canvas, and EXIF or XMP among the chunks."""

from __future__ import annotations

import struct

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.exif import orientation_of
from phs_milvus.contract.headers.header import Broken, Header

_FIRST_CHUNK = 12
_MAX_CHUNKS = 65_536


def read(data: bytes) -> Header:
    width, height = _size(data)
    metadata: dict[bytes, bytes] = {}
    position = _FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, position)
        if kind in (b"EXIF", b"XMP "):
            metadata.setdefault(kind, data[position + 8 : position + 8 + size])
        position += 8 + size + size % 2
    else:
        raise ImageError(f"the WEBP image has more than {_MAX_CHUNKS:,} chunks")
    return Header("WEBP", width, height, data, orientation_of(metadata.get(b"EXIF"), metadata.get(b"XMP ")))


def _size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise Broken("no picture in its first chunk")
