"""From an encoded image to model input: limits, decoding, resizing; and masks to arrays.

Runs on decode threads, without torch. The image is squashed to the model's square, so a pixel (x, y) of the upright
image lands at (x * S / width, y * S / height), and a patch covers the same share of width and height for any image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phs_milvus.contract import pixels
from phs_milvus.contract.cost import Cost, cost_of
from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.errors import ImageError, PromptError
from phs_milvus.contract.headers import Header, read_header
from phs_milvus.contract.types import Limits, MaskRuns, Region


@dataclass(frozen=True)
class Decode:
    """How this server decodes.

    image_size: side of the model's input, pixels; resample: a PIL.Image.Resampling number.
    decoder: the child process to decode in; None: in this process.
    take_expensive: whether to decode pictures that cost many times what others do; otherwise `ExpensivePicture` is
        raised.
    """

    image_size: int
    resample: int
    limits: Limits
    decoder: Decoder | None = None
    take_expensive: bool = True

    def __call__(self, header: Header, region: Region | None = None) -> npt.NDArray[np.uint8]:
        """uint8 [3, S, S], RGB, of the upright image or of a region of it.

        Raises:
            ImageError: over a limit, which is checked before anything is decoded, or not decodable.
            ExpensivePicture: it is for another line.
        """
        cost = self.check(header, region)
        if self.decoder is None:
            return pixels.fitted(header, self.image_size, self.resample, region, cost.scale)
        return self.decoder.fitted(header, cost, self.image_size, self.resample, region)

    def check(self, header: Header, region: Region | None = None) -> Cost:
        """What decoding it may take; raises as decoding it does."""
        cost = cost_of(header, self.image_size, self.limits.image_pixels, region)
        if cost.expensive and not self.take_expensive:
            raise ExpensivePicture
        return cost


class ExpensivePicture(Exception):
    """A picture that takes long to decode, and must not hold up those that do not."""


def prepare_image(
    data: bytes, image_size: int, resample: int, limits: Limits
) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Decodes and resizes in this process: (uint8 [3, S, S] RGB, width, height of the upright image).

    Raises:
        ImageError: over a limit, which is checked before anything is decoded, or not decodable.
    """
    header = checked_header(data, limits)
    return Decode(image_size, resample, limits)(header), *header.upright_size


def checked_header(data: bytes, limits: Limits) -> Header:
    """The header of an encoded image.

    Raises:
        ImageError: over the limit of bytes, or not an image.
    """
    if len(data) > limits.image_bytes:
        raise ImageError(f"is {len(data)} bytes; this server takes up to {limits.image_bytes} (--max-image-bytes)")
    return read_header(data)


def expanded(mask: MaskRuns, width: int, height: int) -> npt.NDArray[np.bool_]:
    """bool [height, width]; its size, in pixels of the upright image, is checked before it is expanded.

    Raises:
        PromptError: another size than the image, or runs that do not fit.
    """
    if (mask.width, mask.height) != (width, height):
        raise PromptError(
            f"is for a {mask.width}x{mask.height} image, but the upright image is {width}x{height} "
            "(EXIF orientation applied)",
            "mask",
        )
    return mask.to_array()
