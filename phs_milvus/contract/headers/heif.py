"""HEIF (HEIC) and AVIF: size and turning of the primary item, out of its properties."""

from __future__ import annotations

import struct

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.boxes import boxes
from phs_milvus.contract.headers.header import Broken, Header

_AVIF = {b"avif", b"avis"}
_MAX_BRANDS = 64
_MAX_ITEMS = 65_536
# One for each width of its numbers. More of them could lie on top of one another, and each be read in whole.
_MAX_TABLES = 4
# By quarter turns counterclockwise: EXIF's orientation alone, mirrored top to bottom, and left to right.
_ORIENTATION = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}


def read(data: bytes) -> Header:
    size = min(int.from_bytes(data[:4], "big"), 8 + 4 * _MAX_BRANDS)
    name = "AVIF" if _AVIF & {data[at : at + 4] for at in range(8, size, 4)} else "HEIF"
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"meta":
            return _primary(name, data, start + 4, end)
    raise Broken("no primary picture")


def _primary(name: str, data: bytes, start: int, end: int) -> Header:
    item: int | None = None
    properties: list[tuple[bytes, int, int]] = []
    owned: dict[int | None, list[int]] = {}
    tables = containers = 0
    for kind, at, stop in boxes(data, start, end):
        if kind == b"pitm":
            item = int.from_bytes(data[at + 4 : at + 6] if data[at] == 0 else data[at + 4 : at + 8], "big")
        elif kind == b"iprp":
            containers += 1
            if containers > 1:
                raise Broken("properties in more than one box")
            for inner, inner_at, inner_stop in boxes(data, at, stop):
                if inner == b"ipco" and not properties:
                    properties = list(boxes(data, inner_at, inner_stop))
                elif inner == b"ipma":
                    tables += 1
                    if tables > _MAX_TABLES:
                        raise Broken(f"more than {_MAX_TABLES} tables of properties")
                    owned |= _associations(data, inner_at)
    size = crop = None
    turn = mirror = 0
    for index in owned.get(item, ()):
        if not 0 < index <= len(properties):
            continue
        kind, at, _ = properties[index - 1]
        if kind == b"ispe":
            size = struct.unpack_from(">II", data, at + 4)
        elif kind == b"irot":
            turn = data[at] & 3
        elif kind == b"imir":
            mirror = 1 + (data[at] & 1)
        elif kind == b"clap" and name == "HEIF":  # Pillow's AVIF reader does not crop
            crop = struct.unpack_from(">4I", data, at)
    if size is None:
        raise Broken("its primary picture has no size")
    if crop and crop[1] and crop[3]:
        size = round(crop[0] / crop[1]), round(crop[2] / crop[3])
    width, height = size
    return Header(name, width, height, data, _ORIENTATION[turn][mirror])


def _associations(data: bytes, at: int) -> dict[int | None, list[int]]:
    """Which properties each item has, as indices from 1."""
    version, wide = data[at], data[at + 3] & 1
    (entries,) = struct.unpack_from(">I", data, at + 4)
    at += 8
    owned: dict[int | None, list[int]] = {}
    left = _MAX_ITEMS
    for _ in range(entries):
        item, count = struct.unpack_from(">HB" if version == 0 else ">IB", data, at)
        at += 3 if version == 0 else 5
        left -= 1 + count
        if left < 0:
            raise ImageError(f"has more than {_MAX_ITEMS:,} properties in its header")
        indices = struct.unpack_from(f">{count}{'H' if wide else 'B'}", data, at)
        at += count * (2 if wide else 1)
        owned.setdefault(item, []).extend(index & (0x7FFF if wide else 0x7F) for index in indices)
    return owned
