"""From an encoded image and a mask to model input: limits, decoding, resizing, and the mask on the patch grid.

Runs on decode threads, without torch. The image is squashed to the model's square, so a pixel (x, y) of the upright
image lands at (x * S / width, y * S / height), and a patch covers the same share of width and height for any image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from phs_milvus.contract.errors import ImageError, PromptError
from phs_milvus.contract.images import decode_upright, open_header
from phs_milvus.contract.types import Float32Array, Limits, MaskRuns, Region

# A JPEG is decoded at reduced scale only where the result is still this many times as wide and high as the target.
# At 2 the pixel error is five times larger: the decoder's own averaging then does most of the resize.
_DRAFT_MARGIN = 3


@dataclass(frozen=True, eq=False)
class Prepared:
    """One item of a batch.

    Attributes:
        pixels: uint8 [3, S, S], RGB.
        width, height: the upright image in pixels.
        region: what of it is in `pixels`.
        mask: float32 [N] in [0, 1], the prompt on the patch grid; None without a prompt.
        heads_on: attention heads to keep; None: every head, none is selected.
        attention_shift: see `Focus`.
        fovea: float32 [N] to add to the [CLS] logits, or None.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    region: Region
    mask: Float32Array | None = None
    heads_on: int | None = None
    attention_shift: float = 0.0
    fovea: Float32Array | None = None

    @property
    def changes_attention(self) -> bool:
        """Whether it changes the attention itself and not only which heads are kept."""
        return bool(self.attention_shift) or self.fovea is not None


def prepare_image(
    data: bytes, image_size: int, resample: int, limits: Limits
) -> tuple[npt.NDArray[np.uint8], int, int]:
    """Decodes and resizes: (uint8 [3, S, S] RGB, width, height of the upright image).

    JPEGs of six times the target's side and more are decoded at reduced scale, two to three times faster. On collages
    of real photos, which are harsher than photos, pixels then differ by less than 0.5 of 255 on average and DeiT-Tiny
    embeddings agree to cosine 0.995 (tests/test_preprocess.py); bilinear in place of bicubic would make it 0.97.

    Raises:
        ImageError: over a limit, which is checked before anything is decoded, or not decodable.
    """
    width, height = checked_size(data, limits)
    return squashed(decode_for(data, image_size), image_size, resample), width, height


def checked_size(data: bytes, limits: Limits) -> tuple[int, int]:
    """Width and height of the upright image, read from its header.

    Raises:
        ImageError: over a limit, or not an image.
    """
    if len(data) > limits.image_bytes:
        raise ImageError(f"is {len(data)} bytes; this server takes up to {limits.image_bytes}")
    width, height, _ = open_header(data)
    if width * height > limits.image_pixels:
        raise ImageError(f"is {width}x{height} pixels; this server takes up to {limits.image_pixels} in all")
    return width, height


def decode_for(data: bytes, image_size: int) -> Image.Image:
    """Decodes the whole image to upright RGB, a JPEG no larger than needed to resize it to `image_size` well."""
    return decode_upright(data, at_least=_DRAFT_MARGIN * image_size)


def squashed(image: Image.Image, image_size: int, resample: int) -> npt.NDArray[np.uint8]:
    """An RGB image at the model's size: uint8 [3, S, S]."""
    resized = image.resize((image_size, image_size), Image.Resampling(resample))
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


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


def shares_on_grid(inside: npt.NDArray[np.bool_], grid: int) -> Float32Array:
    """The share of each patch that a mask covers, exact to float rounding.

    Args:
        inside: bool [height, width].
        grid: patches along one side.

    Returns:
        float32 [grid * grid] in [0, 1], row-major. Any mask with a pixel set has a share above 0 somewhere.

    Raises:
        PromptError: nothing set.
    """
    height, width = inside.shape
    columns = _overlap(grid, width)
    rows = _overlap(grid, height)
    # One band of rows per patch row keeps the float copy of a large mask small.
    bands = []
    for weights in rows:
        touched = np.flatnonzero(weights)
        start, stop = touched[0], touched[-1] + 1
        bands.append(columns @ (weights[start:stop] @ inside[start:stop].astype(np.float32)))
    shares = np.stack(bands).reshape(-1).astype(np.float32)
    if not shares.any():
        raise PromptError("selects no pixel", "mask")
    return np.minimum(shares, 1.0)


def _overlap(cells: int, size: int) -> Float32Array:
    """float32 [cells, size]: the share of cell i that pixel x covers, when `cells` equal cells span `size` pixels."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(shared, 0, None) / (size / cells)).astype(np.float32)
