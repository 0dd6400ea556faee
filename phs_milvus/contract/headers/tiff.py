"""TIFF and BigTIFF: the first directory. A tile counts as much as the picture: it is decoded whole."""

from __future__ import annotations

import struct

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.exif import orientation_of
from phs_milvus.contract.headers.header import Broken, Header

_WIDTH, _HEIGHT, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT, _XMP = 256, 257, 274, 322, 323, 700
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_ENTRIES = 4096
_MAX_XMP = 2**20


def read(data: bytes) -> Header:
    numbers, xmp = _directory(data)
    if _WIDTH not in numbers or _HEIGHT not in numbers:
        raise Broken("no size")
    tile = numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_HEIGHT, 0)
    # Pillow turns a TIFF itself; what it does is undone here, so that `width` and `height` are the stored ones.
    orientation = numbers.get(_ORIENTATION, 1) if _ORIENTATION in numbers else orientation_of(None, xmp)
    orientation = orientation if 1 <= orientation <= 8 else 1
    return Header("TIFF", numbers[_WIDTH], numbers[_HEIGHT], data, orientation, block_pixels=tile)


def _directory(data: bytes) -> tuple[dict[int, int], bytes | None]:
    """The integers of the first directory by tag, and its XMP. Decoders differ on which of two equal tags counts."""
    order = "<" if data[:2] == b"II" else ">"
    big = b"+" in data[2:4]
    word, entry = ("Q", 20) if big else ("I", 12)
    (directory,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    if count > _MAX_ENTRIES:
        raise ImageError(f"the TIFF image has {count:,} tags; {_MAX_ENTRIES:,} are read at most")
    numbers: dict[int, int] = {}
    xmp = None
    start = directory + (8 if big else 2)
    for at in range(start, start + entry * count, entry):
        tag, kind, values = struct.unpack_from(f"{order}HH{word}", data, at)
        value = at + (12 if big else 8)
        if tag == _XMP:
            (place,) = struct.unpack_from(order + word, data, value)
            xmp = data[place : place + min(values, _MAX_XMP)]
        elif kind in _INTEGERS and values == 1:
            (number,) = struct.unpack_from(order + _INTEGERS[kind], data, value)
            if numbers.setdefault(tag, number) != number:
                raise Broken(f"tag {tag} twice, with different values")
    return numbers, xmp
