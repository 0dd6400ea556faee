"""A header that was read -> pixels, with Pillow. What it raises for corrupt files, nearly any builtin exception, is an
ImageError here."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import Header
from phs_milvus.contract.types import Region

_READERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "JPEG2000": Jpeg2KImageFile,
    "PPM": PpmImageFile,
}
# These two need what is not always there.
_MISSING = {
    "AVIF": "AVIF needs Pillow 11.3 or newer where it is decoded: pip install -U pillow",
    "HEIF": "HEIC needs pillow-heif where it is decoded: pip install 'phs-milvus[heif]'",
}
with suppress(ImportError):
    from PIL import AvifImagePlugin

    if AvifImagePlugin.SUPPORTED:
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        _READERS["AVIF"] = AvifImagePlugin.AvifImageFile
with suppress(ImportError):
    import pillow_heif

    pillow_heif.options.DECODE_THREADS = 1
    _READERS["HEIF"] = pillow_heif.HeifImageFile

# A JPEG is decoded at reduced scale only where the result is still this many times as wide and high as the target.
# At 2 the pixel error is five times larger: the decoder's own averaging then does most of the resize.
DRAFT_MARGIN = 3
# A decoder's error may quote the file.
_MAX_TEXT = 200

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


def fitted(
    header: Header, side: int, resample: int, region: Region | None = None, scale: int = 1
) -> npt.NDArray[np.uint8]:
    """Decodes an image, or a region of it, to a square.

    Args:
        side: of the square, in pixels.
        resample: a PIL.Image.Resampling number.
        region: x0, y0, x1, y1 in pixels of the upright image, exclusive; None: all of it.
        scale: as `draft_scale` says, or 1.

    Returns:
        uint8 [3, side, side], RGB.

    Raises:
        ImageError: as `decode`.
    """
    image = rgb(decode(header, scale))
    if region is not None:
        # Cropped before it is resized: `resize(box=...)` would mix in pixels from outside the region.
        x0, y0, x1, y1 = (round(edge / scale) for edge in region)
        image = image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    resized = image.resize((side, side), Image.Resampling(resample))
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def draft_scale(header: Header, side: int, region: Region | None = None) -> int:
    """1, 2, 4 or 8: the scale at which a JPEG may be decoded for `fitted`.

    JPEGs of which `side` takes a sixth or less are decoded at reduced scale, two to three times faster. On collages of
    real photos, which are harsher than photos, pixels then differ by less than 0.5 of 255 on average and DeiT-Tiny
    embeddings agree to cosine 0.995 (tests/server/flow/test_preprocess.py); bilinear in place of bicubic would make it
    0.97.
    """
    if region is None:
        return scale_for(header, DRAFT_MARGIN * side)
    return _scale(header, min(region[2] - region[0], region[3] - region[1]), DRAFT_MARGIN * side)


def scale_for(header: Header, at_least: int) -> int:
    """1, 2, 4 or 8: the scale at which a JPEG may be decoded so that both sides keep `at_least` pixels."""
    return _scale(header, min(header.width, header.height), at_least)


def _scale(header: Header, shorter: int, at_least: int) -> int:
    if header.format != "JPEG":
        return 1
    return next(scale for scale in (8, 4, 2, 1) if scale == 1 or shorter // at_least >= scale)


def decode(header: Header, scale: int = 1) -> Image.Image:
    """Decodes the first frame, upright, in the file's own mode (palette, alpha and bit depth kept).

    Args:
        scale: 1, 2, 4 or 8, which only JPEG knows: sides are divided by it and rounded up.

    Raises:
        ImageError: truncated or corrupt, pixels of another size than the header says, or a format that needs a package
            which is not installed.
    """
    if header.format not in _READERS:
        raise ImageError(_MISSING[header.format])
    with guard(f"broken {header.format} header"):
        image = _READERS[header.format](io.BytesIO(header.data))
    with guard(f"the {header.format} image cannot be decoded"):
        if scale > 1:
            image.draft(None, (header.width // scale, header.height // scale))
        image.load()
        turned = image if header.format in ("TIFF", "HEIF") else oriented(image, header.orientation)  # these turn it
        if turned.size != tuple(-(-edge // scale) for edge in header.upright_size):
            said, found = ("x".join(map(str, size)) for size in (header.upright_size, turned.size))
            raise ImageError(f"the {header.format} image declares {said} pixels but decodes to {found}")
        return _mended(turned, header)


def _mended(image: Image.Image, header: Header) -> Image.Image:
    """Transparency as the file means it, where Pillow takes it another way."""
    if header.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        # The clipboard and screen grabbers write alpha 0 everywhere, and every viewer shows the picture.
        return image.convert("RGB")
    if header.format == "PNG" and (clear := image.info.get("transparency")) is not None:
        depth, colour = header.data[24], header.data[25]
        if colour == 0 and depth in (2, 4):  # Pillow scales the pixels to 8 bits, and this it does not
            image.info["transparency"] = clear * (255 // (2**depth - 1))
        elif colour == 2 and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def oriented(image: Image.Image, orientation: int) -> Image.Image:
    """Pixels of this EXIF orientation turned upright."""
    if orientation not in _TRANSPOSE:
        return image
    turned = image.transpose(_TRANSPOSE[orientation])
    # Pillow copies the orientation tag; left in place, it would turn the image a second time.
    turned.info = {key: value for key, value in image.info.items() if key in ("transparency", "icc_profile")}
    return turned


def rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: transparency on white, 16 bits to 8 by >> 8, CMYK by its profile; `image` is loaded.

    Raises:
        ImageError: float pixels, or 32-bit ones outside 0..65535.
    """
    mode = image.mode
    if mode == "F":
        raise ImageError("float pixels have no defined white; convert the image to 8 or 16 bits")
    if mode.startswith("I"):
        return _from_wide(np.asarray(image), image.info.get("transparency"))
    if mode == "LAB":
        from PIL import ImageCms  # an optional part of Pillow

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")  # type: ignore[return-value]
    if mode == "CMYK" and (profile := image.info.get("icc_profile")):
        return _by_profile(image, profile)
    if image.has_transparency_data:
        if mode == "La":
            image = image.convert("LA")  # Pillow undoes premultiplied alpha only this way
        with_alpha = image if mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(with_alpha, mask=with_alpha)
        return white
    return image if mode == "RGB" else image.convert("RGB")


def _from_wide(wide: npt.NDArray[np.integer], transparent: int | None) -> Image.Image:
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageError("32-bit pixels outside 0..65535; convert the image to 8 or 16 bits")
    narrow = (wide >> 8).astype(np.uint8)
    if isinstance(transparent, int):
        narrow[wide == transparent] = 255
    return Image.fromarray(narrow).convert("RGB")


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """CMYK -> RGB as its ICC profile says; by the plain formula where that is no profile of CMYK."""
    try:
        from PIL import ImageCms
    except ImportError:  # a Pillow built without LittleCMS
        return image.convert("RGB")
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")  # type: ignore[return-value]
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")


@contextmanager
def guard(what: str) -> Iterator[None]:
    """Turns what Pillow raises into an ImageError of one line."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{what}: it takes more memory than it may") from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{what}: {text[:_MAX_TEXT]}") from error
