"""Images of any kind -> encoded bytes with their upright size, and encoded bytes -> upright RGB pixels.

"Upright" is after EXIF orientation: the frame in which every prompt is given. The client reads headers only, which
takes milliseconds whatever the file is (`headers`). Where pixels come from strangers they are decoded in a process of
their own (`decoding`); `decode_upright` is for one's own files.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from phs_milvus.contract import pixels
from phs_milvus.contract.errors import ImageError, shown
from phs_milvus.contract.headers import FORMATS, read_header
from phs_milvus.contract.pixels import guard, oriented, rgb

__all__ = [
    "FORMATS",
    "EncodedImage",
    "ImageSource",
    "decode_native",
    "decode_upright",
    "load_image",
    "open_header",
    "upright",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]{200,}")

_ARRAYS = "uint8 [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA); bool or uint16 [H, W] or [H, W, 1]"


@dataclass(frozen=True)
class EncodedImage:
    """An image as it travels to the server.

    Attributes:
        data: the encoded file, in one of `FORMATS`.
        width, height: pixels of the upright image.
        path: where it was read from; None for images that came from memory.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    path: str | None = None

    @cached_property
    def digest(self) -> str:
        """sha256 of `data`, 64 hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[Any] | EncodedImage"
)


def load_image(source: ImageSource) -> EncodedImage:
    """Prepares an image for the server.

    Args:
        source: a path or the bytes of an encoded file (sent as they are; only the header is read here); a PIL
            image (turned upright; the current frame of an animation) or an array (uint8 [H, W], [H, W, 1],
            [H, W, 3] RGB, [H, W, 4] RGBA; bool or uint16 [H, W], [H, W, 1]), encoded losslessly as PNG; or an
            EncodedImage, returned as it is.

    Raises:
        ImageError: not found, empty, not an image, unsupported pixels; the text names the path.
    """
    if isinstance(source, EncodedImage):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), None)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        return _from_bytes(_read(path), path)
    if isinstance(source, Image.Image):
        return _from_pil(upright(source))
    if isinstance(source, np.ndarray):
        return _from_pil(_from_array(source))
    kinds = "a path, the bytes of an image file, a PIL image or a numpy array"
    raise ImageError(f"cannot read an image from {type(source).__name__}; give {kinds}")


def open_header(data: bytes) -> tuple[int, int, str]:
    """Reads the upright size and the format of an encoded image without decoding pixels, in milliseconds.

    Returns:
        (width, height, format): pixels of the upright image, and one of `FORMATS`.

    Raises:
        ImageError: empty, not in a supported format, or with a broken header.
    """
    header = read_header(data)
    return *header.upright_size, header.format


def decode_upright(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes an image to upright RGB: first frame, transparency on white, 16-bit gray to 8 by >> 8.

    Args:
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many pixels,
            which costs a fraction of the time; None: full size.

    Raises:
        ImageError: not an image, truncated or corrupt, or float pixels.
    """
    header = read_header(data)
    with guard("the image cannot be decoded"):
        return rgb(pixels.decode(header, pixels.scale_for(header, at_least) if at_least else 1))


def decode_native(data: bytes) -> Image.Image:
    """Decodes the first frame, upright, in the file's own mode (palette, alpha and bit depth kept).

    Raises:
        ImageError: not an image, truncated or corrupt.
    """
    return pixels.decode(read_header(data))


def upright(image: Image.Image) -> Image.Image:
    """The current frame of a PIL image with its EXIF orientation applied; the mode stays.

    Raises:
        ImageError: zero-sized, closed, or its file is corrupt.
    """
    with guard("the PIL image cannot be decoded"):
        image.load()
        if 0 in image.size:
            raise ImageError(f"the PIL image is {image.width}x{image.height}: it has no pixels")
        return oriented(image, _orientation(image))


# --- reading ------------------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    if reason := _no_path(path):
        raise ImageError(reason)
    try:
        file = Path(path)
        if file.is_file():
            return file.read_bytes()
        reason = "is a directory" if file.is_dir() else "not a regular file" if file.exists() else "not found"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ImageError(f"{shown(path)}: {reason}")


def _no_path(text: str) -> str:
    """Why a text is no path, where it is something else that people have; "" otherwise."""
    if text[:5].lower() == "data:":
        return f"{shown(text)}: a data: URI is not a path; decode it and give the bytes"
    if _URL.match(text):
        return f"{shown(text)}: URLs are not fetched; download the image and give its path or bytes"
    if _BASE64.fullmatch(text, 0, 4096) and not os.path.lexists(text[:4096]):
        return f"{shown(text)}: this looks like base64, not like a path; decode it and give the bytes"
    return ""


def _from_bytes(data: bytes, path: str | None) -> EncodedImage:
    try:
        width, height, _ = open_header(data)
    except ImageError as error:
        raise ImageError(f"{shown(path) if path else 'image bytes'}: {error}") from error.__cause__
    return EncodedImage(data, width, height, path)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a PIL image, 1 to 8; unreadable EXIF counts as 1, since the picture itself is fine."""
    if isinstance(image, TiffImageFile):
        return 1  # Pillow applies a TIFF's orientation itself, to the size in the header and to the pixels.
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # for corrupt files nearly any builtin exception
        return 1
    return orientation if orientation in range(1, 9) else 1


# --- encoding -----------------------------------------------------------------------------------------------


def _from_pil(image: Image.Image) -> EncodedImage:
    with guard("the PIL image cannot be encoded"):
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):  # what PNG holds without loss
            image = rgb(image)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1, exif=None, icc_profile=None)
    return EncodedImage(buffer.getvalue(), *image.size)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    shape = list(array.shape)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"array of shape {shape}; an image array is {_ARRAYS}")
    if 0 in shape:
        raise ImageError(f"array of shape {shape} has no pixels")
    pixels = array[:, :, 0] if shape[2:] == [1] else array
    if pixels.dtype == np.bool_ and pixels.ndim == 2:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2 and pixels.ndim == 2:
        pixels = pixels.astype("<u2", copy=False)  # the byte order of Pillow's I;16
    elif pixels.dtype != np.uint8:
        raise ImageError(f"array of {array.dtype} {shape}; an image array is {_ARRAYS}")
    return Image.fromarray(np.ascontiguousarray(pixels))
