"""JPEG 2000: the size in the codestream, which is the one that is decoded, and in the box before it."""

from __future__ import annotations

import struct

from phs_milvus.contract.headers.boxes import boxes
from phs_milvus.contract.headers.header import Broken, Header

_CODESTREAM = b"\xff\x4f\xff\x51"


def read(data: bytes) -> Header:
    start, said = (0, None) if data.startswith(_CODESTREAM) else _in_boxes(data)
    right, bottom, left, top, *_, components = struct.unpack_from(">8IH", data, start + 8)
    width, height = right - left, bottom - top
    if min(width, height) < 0 or not 1 <= components <= 4 or said not in (None, (width, height)):
        raise Broken("no size that holds")
    # OpenJPEG holds each component in 32 bits, once for the tile and once for the picture.
    return Header("JPEG2000", width, height, data, buffered_bytes=8 * components * width * height)


def _in_boxes(data: bytes) -> tuple[int, tuple[int, int] | None]:
    """Where the codestream starts, and the (width, height) that the box says."""
    said = None
    headers = 0
    for kind, start, end in boxes(data, 0, len(data)):
        if kind == b"jp2h":
            headers += 1
            if headers > 1:
                raise Broken("more than one header box")
            for inner, at, _ in boxes(data, start, end):
                if inner == b"ihdr" and said is None and at + 8 <= len(data):
                    height, width = struct.unpack_from(">II", data, at)
                    said = width, height
                    break
        if kind == b"jp2c" and data.startswith(_CODESTREAM, start):
            return start, said
    raise Broken("no codestream")
