"""Images of any kind -> encoded bytes with their upright size, and encoded bytes -> upright RGB pixels.

"Upright" is after EXIF orientation: the frame in which every prompt is given. The client reads headers only;
pixels are decoded by the server, and by the client where it draws, both with `decode_upright`.

Pillow's own `Image.open` is not used: it hands files to every decoder it knows (EPS starts Ghostscript), and
warns about or refuses large images by a process-wide limit. Here the formats are a closed list, and the size
limit is the server's to set: call `open_header` first, then decode.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from phs_milvus.contract.errors import ImageError, shown

_READERS: tuple[tuple[str, re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    ("GIF", re.compile(rb"GIF8[79]a"), GifImageFile),
    ("BMP", re.compile(rb"BM"), BmpImageFile),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    ("AVIF", re.compile(rb"....ftyp(avif|avis|mif1|miaf)", re.DOTALL), AvifImageFile),
    ("JPEG2000", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImageFile),
    ("PPM", re.compile(rb"P[1-6]\s"), PpmImageFile),
)
FORMATS = tuple(name for name, _, _ in _READERS)

# Encoders write about 10 scans in a progressive JPEG, 4 where colours are separate.
_MAX_SCANS = 64
_SCAN = b"\xff\xda"
# Behind 0xFF: not a stuffed zero, a restart or fill; start-of-image has no length, and occurs once.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd9-\xfe]")

# How to turn stored pixels upright, by EXIF orientation; 5 to 8 swap width and height.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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
    """Reads the upright size and the format of an encoded image without decoding pixels.

    Safe for decompression bombs: check the size it returns before `decode_upright`.

    Returns:
        (width, height, format): pixels of the upright image, and one of `FORMATS`.

    Raises:
        ImageError: empty, not in a supported format, or with a broken header.
    """
    image, name = _open(data)
    width, height = image.size if _orientation(image, data) < 5 else image.size[::-1]
    return width, height, name


def decode_upright(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes an image to upright RGB: first frame, transparency on white, 16-bit gray to 8 by >> 8.

    Args:
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides keep this many pixels,
            which costs a fraction of the time; None: full size.

    Raises:
        ImageError: not an image, truncated or corrupt, or float pixels.
    """
    with _guard("the image cannot be decoded"):
        return _rgb(decode_native(data, at_least))


def decode_native(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes the first frame, upright, in the file's own mode (palette, alpha and bit depth kept).

    Raises:
        ImageError: not an image, truncated or corrupt.
    """
    image, name = _open(data)
    orientation = _orientation(image, data)  # before the pixels, so that it is what `open_header` saw
    with _guard(f"the {name} image cannot be decoded"):
        if at_least is not None:
            image.draft(None, (at_least, at_least))  # a no-op for other formats than JPEG
        image.load()
        return _oriented(image, orientation)


def upright(image: Image.Image) -> Image.Image:
    """The current frame of a PIL image with its EXIF orientation applied; the mode stays.

    Raises:
        ImageError: zero-sized, closed, or its file is corrupt.
    """
    with _guard("the PIL image cannot be decoded"):
        image.load()
        if 0 in image.size:
            raise ImageError(f"the PIL image is {image.width}x{image.height}: it has no pixels")
        return _oriented(image, _orientation(image))


# --- reading ------------------------------------------------------------------------------------------------


@contextmanager
def _guard(what: str) -> Iterator[None]:
    """Turns what Pillow raises, for corrupt files nearly any builtin exception, into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{what}: {str(error) or type(error).__name__}") from error


def _read(path: str) -> bytes:
    try:
        file = Path(path)
        if file.is_file():
            return file.read_bytes()
        reason = "is a directory" if file.is_dir() else "not a regular file" if file.exists() else "not found"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ImageError(f"{shown(path)}: {reason}")


def _from_bytes(data: bytes, path: str | None) -> EncodedImage:
    try:
        width, height, _ = open_header(data)
    except ImageError as error:
        raise ImageError(f"{path or 'image bytes'}: {error}") from error.__cause__
    return EncodedImage(data, width, height, path)


def _open(data: bytes) -> tuple[ImageFile.ImageFile, str]:
    """A Pillow image that has read its header, not its pixels, and the name of its format."""
    if not data:
        raise ImageError("empty: 0 bytes")
    for name, signature, reader in _READERS:
        if signature.match(data):
            if name == "JPEG":
                _check_scans(data)
            with _guard(f"broken {name} header"):
                return reader(io.BytesIO(data)), name
    raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)})")


def _check_scans(data: bytes) -> None:
    """Refuses progressive JPEGs with far more scans than any encoder writes: each takes 100 bytes, and as long to
    decode as the whole picture."""
    if data.count(_SCAN) <= _MAX_SCANS:
        return  # nearly always; the marker's bytes may also be in a thumbnail, or in a video behind the picture
    position, scans = 2, 0
    while marker := _MARKER.search(data, position):
        if marker[0] == b"\xff\xd9":
            return
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            raise ImageError(f"the JPEG image has more than {_MAX_SCANS} scans")
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _orientation(image: Image.Image, data: bytes = b"") -> int:
    """The EXIF orientation, 1 to 8; unreadable EXIF counts as 1, since the picture itself is fine."""
    if isinstance(image, TiffImageFile):
        return 1  # Pillow applies a TIFF's orientation itself, to the size in the header and to the pixels.
    try:
        if isinstance(image, PngImageFile) and "exif" not in image.info:
            # PNG allows the chunk after the pixels, and there Pillow would decode them all to get at it.
            image.info.update(_png_exif(data))
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _guard
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _png_exif(data: bytes) -> dict[str, bytes]:
    """The payload of a PNG's eXIf chunk as "exif"; empty where it has none."""
    position = 8
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"eXIf":
            return {"exif": data[position + 8 : position + 8 + size]}
        position += size + 12  # length, type, payload, checksum
    return {}


def _oriented(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TRANSPOSE:
        return image
    turned = image.transpose(_TRANSPOSE[orientation])
    # Pillow carries the orientation along, and who looks again would turn the image again.
    turned.info = {key: value for key, value in turned.info.items() if key == "transparency"}
    return turned


# --- pixels -------------------------------------------------------------------------------------------------


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB; `image` is loaded."""
    mode = image.mode
    if mode == "F":
        raise ImageError("float pixels have no defined white; convert the image to 8 or 16 bits")
    if mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ImageError("32-bit pixels outside 0..65535; convert the image to 8 or 16 bits")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        from PIL import ImageCms  # an optional part of Pillow

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")  # type: ignore[return-value]
    if image.has_transparency_data:
        if mode == "La":
            image = image.convert("LA")  # Pillow undoes premultiplied alpha only this way
        with_alpha = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(with_alpha, mask=with_alpha)
        return white
    return image if mode == "RGB" else image.convert("RGB")


def _from_pil(image: Image.Image) -> EncodedImage:
    with _guard("the PIL image cannot be encoded"):
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):  # what PNG holds without loss
            image = _rgb(image)
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
