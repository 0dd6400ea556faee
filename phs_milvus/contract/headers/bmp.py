"""BMP: the size; run-length encoding is refused."""

from __future__ import annotations

import struct

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.header import Broken, Header

_OS2 = 12
_SIZES = (_OS2, 40, 52, 56, 64, 108, 124)
_RUN_LENGTHS = (1, 2)


def read(data: bytes) -> Header:
    if len(data) < 34:
        raise Broken("ends within its header")
    (size,) = struct.unpack_from("<I", data, 14)
    if size not in _SIZES:
        raise Broken(f"an info header of {size} bytes is unknown")
    if size == _OS2:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height, data)
    width, height = struct.unpack_from("<Ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if compression in _RUN_LENGTHS:
        # Pillow reads it in Python, a run at a time: 15 MB of runs take half a minute.
        raise ImageError("run-length encoded BMP images are not read; save it as PNG")
    return Header("BMP", width, abs(height), data)
