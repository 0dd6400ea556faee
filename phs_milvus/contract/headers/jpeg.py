"""JPEG: segments up to the first scan. Metadata is left out, so that no decoder meets a million segments of it."""

from __future__ import annotations

import re

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers.exif import orientation_of
from phs_milvus.contract.headers.header import Broken, Header

# A colour profile takes up to 255 segments, and those of a depth map hold 64 KiB each.
_MAX_SEGMENTS = 1024
# Encoders write about 10 scans in a progressive JPEG, 4 where colours are separate. Each takes 100 bytes, and as long
# to decode as the whole picture.
_MAX_SCANS = 64
_MAX_MARKERS = 10_000
_MAX_JUNK = 65_536

_START, _END, _SCAN, _EXIF, _PROFILE = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
_ALONE = {0x01, *range(0xD0, 0xD8)}  # these have no length
_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# Within a scan: 0xFF before anything but a stuffed zero, a restart or fill.
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd9-\xfe]")


def read(data: bytes) -> Header:
    kept, profile = [b"\xff\xd8"], []
    frame = exif = xmp = None
    progressive = False
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, position, position + _MAX_JUNK)
        if found is None:
            raise Broken("no segment where one should be")
        kind, start, end = found[0][1], found.start(), found.end()
        position = end + (0 if kind in _ALONE or kind == _START else int.from_bytes(data[end : end + 2], "big"))
        if kind == _END or position > len(data):
            raise Broken("ends before its pixels")
        if kind == _SCAN:
            break
        segment = data[start:position]
        if kind in _FRAMES:
            frame, progressive = segment[4:], kind in _PROGRESSIVE
        elif kind == _EXIF and exif is None and segment.startswith(b"Exif\0\0", 4):
            exif = segment[4:]
        elif kind == _EXIF and segment.startswith(_XMP, 4):
            xmp = segment[4 + len(_XMP) :]
        elif kind == _PROFILE and segment.startswith(b"ICC_PROFILE\0", 4):
            profile.append(segment)
        if kind not in _METADATA:
            kept.append(segment)
    else:
        raise ImageError(f"the JPEG image has more than {_MAX_SEGMENTS:,} segments before its pixels")
    if frame is None or len(frame) < 6 or not frame[5] or len(frame) < 6 + 3 * frame[5]:
        raise Broken("no frame before its pixels")
    height, width, components = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big"), frame[5]
    if components == 4:
        kept[1:1] = profile  # without it the colours of CMYK are a guess
    in_scan = data[end + 2] if end + 2 < len(data) else 0
    whole = progressive or in_scan < components
    if whole:
        _check_scans(data, start)
    return Header(
        "JPEG",
        width,
        height,
        b"".join([*kept, data[start:]]),
        orientation_of(exif, xmp),
        buffered_bytes=_coefficients(frame, width, height) if whole else 0,
    )


def _coefficients(frame: bytes, width: int, height: int) -> int:
    """Bytes of all coefficients, which a decoder keeps where they come in several scans."""
    factors = [(byte >> 4, byte & 15) for byte in frame[7 : 6 + 3 * frame[5] : 3]]
    widest, highest = max(h for h, _ in factors), max(v for _, v in factors)
    if not (widest and highest):
        raise Broken("a sampling factor is 0")
    return 2 * width * height * sum(h * v for h, v in factors) // (widest * highest)


def _check_scans(data: bytes, position: int) -> None:
    """Refuses far more scans than any encoder writes."""
    if data.count(b"\xff\xda", position) <= _MAX_SCANS:
        return  # nearly always; the marker's bytes may also be in a video behind the picture
    scans = 0
    for _ in range(_MAX_MARKERS):
        marker = _MARKER_IN_SCAN.search(data, position)
        if marker is None or marker[0][1] == _END:
            return
        scans += marker[0][1] == _SCAN
        if scans > _MAX_SCANS:
            raise ImageError(f"the JPEG image has more than {_MAX_SCANS} scans")
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise ImageError(f"the JPEG image has more than {_MAX_MARKERS:,} markers among its pixels")
