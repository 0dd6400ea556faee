"""GIF: up to the first frame. Comments and other extensions before it are left out, but for its transparency."""

from __future__ import annotations

import struct

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.header import Broken, Header

_SCREEN = 13
_EXTENSION, _FRAME, _END, _TRANSPARENCY = 0x21, 0x2C, 0x3B, 0xF9
_MAX_BLOCKS = 65_536


def read(data: bytes) -> Header:
    if len(data) < _SCREEN:
        raise Broken("ends within its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    screen_end = position = _SCREEN + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    blocks = 0
    while position < len(data) and data[position] != _END:
        start = position
        if data[position] == _FRAME:
            if len(data) < position + 10:
                break
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            plain = data if start == screen_end else data[:screen_end] + control + data[start:]
            return Header("GIF", max(width, left + frame_width), max(height, top + frame_height), plain)
        if data[position] != _EXTENSION:
            position += 1
        else:
            position += 2
            while position < len(data) and data[position]:
                position += 1 + data[position]
                blocks += 1
                if blocks > _MAX_BLOCKS:
                    break
            position += 1
            if data[start + 1 : start + 2] == bytes([_TRANSPARENCY]):
                control = data[start:position]
        blocks += 1
        if blocks > _MAX_BLOCKS:
            raise ImageError(f"the GIF image has more than {_MAX_BLOCKS:,} blocks before its first frame")
    raise Broken("no frame")
