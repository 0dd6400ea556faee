"""How a picture is turned, by EXIF or XMP; what cannot be read there counts as upright, since the picture is fine."""

from __future__ import annotations

import re
import struct

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation, 1 to 8, that EXIF says, else the one of XMP, else 1."""
    found = _in_exif(exif) if exif else None
    if found is None and xmp and (match := _IN_XMP.search(xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _in_exif(exif: bytes) -> int | None:
    if exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, _ = struct.unpack_from(f"{order}HHI", exif, at)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                value: int = struct.unpack_from(f"{order}{'H' if kind == _SHORT else 'I'}", exif, at + 8)[0]
                return value
    except struct.error:
        pass
    return None
