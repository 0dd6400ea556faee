"""WebP: the canvas, and EXIF or XMP among the chunks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.exif import orientation_of
from phs_milvus.contract.headers.header import Broken, Header

_FIRST_CHUNK = 12
_MAX_CHUNKS = 65_536


def read(data: bytes) -> Header:
    width, height = _size(data)
    metadata = {kind: data[start:end] for kind, start, end in _chunks(data) if kind in (b"EXIF", b"XMP ")}
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


def is_lossy(data: bytes) -> bool:
    """Whether its picture, of an animation the first, is stored with loss."""
    for kind, start, _ in _chunks(data):
        if kind == b"ANMF":  # a frame: 16 bytes, then its own chunks
            return data[start + 16 : start + 20] != b"VP8L"
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
    return False


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk's contents."""
    position = _FIRST_CHUNK
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            return
        kind, size = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, position + 8 + size
        position += 8 + size + size % 2
    raise ImageError(f"the WEBP image has more than {_MAX_CHUNKS:,} chunks")
