"""What a header says, and the two rules that hold for all formats: a picture has pixels, and no side is over 65,535."""

from __future__ import annotations

from dataclasses import dataclass, field

from phs_milvus.contract.errors import ImageError

# JPEG, WebP, GIF and most programs end there; a picture 100 million wide and 1 high is made to hurt.
MAX_SIDE = 65_535


@dataclass(frozen=True)
class Header:
    """An encoded image whose header has been read.

    Attributes:
        format: one of `phs_milvus.contract.headers.FORMATS`.
        width, height: pixels as they are stored.
        orientation: EXIF's 1 to 8: how the stored pixels become upright.
        data: the file less what pixels do not need, so that a decoder meets no metadata.
        block_pixels: what is decoded at once, where that may be more than the picture: a TIFF's tile.
        buffered_bytes: what a decoder holds of the whole picture beside its pixels, at whatever scale it decodes:
            the coefficients of a progressive JPEG.
    """

    format: str
    width: int
    height: int
    data: bytes = field(repr=False)
    orientation: int = 1
    block_pixels: int = 0
    buffered_bytes: int = 0

    def __post_init__(self) -> None:
        if not (self.width and self.height):
            raise ImageError(f"is {self.width}x{self.height} pixels: it has none")
        if max(self.width, self.height) > MAX_SIDE:
            raise ImageError(f"is {self.width}x{self.height} pixels; a side has at most {MAX_SIDE:,}")

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the upright image."""
        return (self.width, self.height) if self.orientation < 5 else (self.height, self.width)


class Broken(Exception):
    """A header that cannot be read; the text says what is wrong with it."""
