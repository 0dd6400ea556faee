"""Boxes: length, four letters, contents; the frame of HEIF, AVIF and JPEG 2000."""

from __future__ import annotations

from collections.abc import Iterator

from phs_milvus.contract.errors import ImageError

_MAX_BOXES = 4096


def boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end of the contents) of each box between two positions; what is cut off ends it."""
    for _ in range(_MAX_BOXES):
        if position + 8 > end:
            return
        size, kind, head = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0:
            size = end - position
        if size < head:
            return
        yield kind, position + head, min(end, position + size)
        position += size
    raise ImageError(f"has more than {_MAX_BOXES:,} boxes in its header")
