"""What decoding a picture may cost, by what its header declares: pixels, memory and processor time."""

from __future__ import annotations

from dataclasses import dataclass

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import Header
from phs_milvus.contract.pixels import draft_scale
from phs_milvus.contract.types import Region

_MIB = 2**20
_BASE_BYTES = 64 * _MIB
# Decoded and converted, 4 bytes each, twice over: Pillow, a codec's own picture, and a turned one.
_BYTES_PER_PIXEL = 24
_BYTES_PER_PIXEL_ALLOWED = 8
_LEAST_MOST_BYTES = 256 * _MIB
_BASE_SECONDS = 1.5
# About four times what a pixel of a good picture takes on one core of 2020. A JPEG takes some for each pixel that is
# stored as well, and far more where it comes in several scans.
_NANOSECONDS = {"JPEG": 30, "PNG": 60, "AVIF": 120, "HEIF": 160, "JPEG2000": 600}
_NANOSECONDS_AT_ONCE, _NANOSECONDS_IN_SCANS = 10, 40
_EXPENSIVE_BYTES, _EXPENSIVE_SECONDS = 512 * _MIB, 4.0
# Phones make baseline JPEGs of 200 megapixels, of which 27 MiB are held at a time.
_STORED_OVER_DECODED = 2


@dataclass(frozen=True)
class Cost:
    """What decoding one picture may take.

    Attributes:
        memory: bytes beyond what the child holds at rest.
        seconds: processor time.
        scale: 1, 2, 4 or 8, at which a JPEG is decoded.
    """

    memory: int
    seconds: float
    scale: int = 1

    @property
    def expensive(self) -> bool:
        """Whether it should wait in a line of its own: one such picture holds up many usual ones."""
        return self.memory > _EXPENSIVE_BYTES or self.seconds > _EXPENSIVE_SECONDS


def cost_of(header: Header, side: int, max_pixels: int, region: Region | None = None) -> Cost:
    """What decoding a picture to `side` pixels may take, from its header.

    A JPEG counts at the scale that it is decoded at, so that a phone's 200 megapixels pass.

    Raises:
        ImageError: more pixels, or more memory, than `max_pixels` stands for.
    """
    scale = draft_scale(header, side, region)
    if region is not None and header.format == "JPEG":
        # A region that asks for more pixels than are allowed is seen less sharply, and not refused.
        while scale < 8 and _pixels(header, scale) > max_pixels:
            scale *= 2
    stored, pixels = header.width * header.height, max(_pixels(header, scale), header.block_pixels)
    if pixels > max_pixels or stored > _STORED_OVER_DECODED * max_pixels:
        width, height = header.upright_size
        tile = f" in a tile of {pixels:,}" if header.block_pixels > max_pixels >= stored else ""
        raise ImageError(
            f"is {width}x{height} pixels{tile}; this server takes up to {max_pixels} in all (--max-image-pixels)"
        )
    most = max(_LEAST_MOST_BYTES, _BYTES_PER_PIXEL_ALLOWED * max_pixels)
    needed = header.buffered_bytes + 4 * pixels
    if needed > most:
        raise ImageError(
            f"takes {needed // _MIB:,} MiB to decode as {header.format}; {most // _MIB:,} are allowed "
            "(--max-image-pixels raises it); save it smaller, or as baseline JPEG"
        )
    memory = min(_BYTES_PER_PIXEL * pixels + header.buffered_bytes, most) + _BASE_BYTES + 2 * len(header.data)
    nanoseconds = _NANOSECONDS.get(header.format, _NANOSECONDS["PNG"]) * pixels
    if header.format == "JPEG":
        nanoseconds += (_NANOSECONDS_IN_SCANS if header.buffered_bytes else _NANOSECONDS_AT_ONCE) * stored
    return Cost(memory, _BASE_SECONDS + nanoseconds / 1e9, scale)


def _pixels(header: Header, scale: int) -> int:
    return -(-header.width // scale) * -(-header.height // scale)
