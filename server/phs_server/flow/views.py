"""What one request is to the model: parts of an image, each with the prompts to see it under.

Runs on decode threads. Pixels of the upright image throughout; regions are x0, y0, x1, y1, exclusive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from phs_milvus.contract.errors import InvalidInput, PictureNotHeld
from phs_milvus.contract.headers import Header
from phs_milvus.contract.location import LocateTarget
from phs_milvus.contract.types import MOST_MASK_PIXELS, Float32Array, Focus, MaskRuns, Pointing, Region
from phs_server.flow.focus import GridPrompt, focused, whole_image
from phs_server.flow.held import HeldPictures, Key
from phs_server.flow.preprocess import Decode, ExpensivePicture, checked_header, expanded
from phs_server.model.batch import PromptBatch

HeadCount = Callable[[Focus], int]

_NOT_HELD = "this server does not hold the picture of this digest; send its bytes"
# Pixels of masks to expand beyond which a request waits in the line of expensive pictures.
_USUAL_MASK_PIXELS = 2**25


@dataclass(frozen=True, eq=False)
class Asked:
    """What a request asks.

    Attributes:
        image: an encoded file; empty where `digest` names one that this server holds.
        pointings: what to look at; empty where `target` is to be located.
        owner: who asks, and for whom the picture is held afterwards; None: it is not held.
        region_features: whether the prompts' region features are wanted.
    """

    image: bytes
    digest: bytes
    pointings: Sequence[Pointing] = ()
    target: LocateTarget | None = None
    owner: str | None = None
    region_features: bool = False


@dataclass(frozen=True, eq=False)
class View:
    """One part of an image, which the model's trunk sees once.

    Attributes:
        pixels: uint8 [3, S, S], RGB; None where `tokens` are held.
        tokens: what enters the last layer, [T, D]; None where the trunk is to make them.
        width, height: the upright image in pixels.
        region: what of it is in `pixels`.
        prompts: the prompts to see it under, at least one.
        places: which of the request's prompts these are.
        target: what to locate in it, in place of encoding it.
        key: what to hold its tokens under; None: they are not held.
        region_features: as in `Asked`.
    """

    pixels: npt.NDArray[np.uint8] | None
    tokens: Tensor | None
    width: int
    height: int
    region: Region
    prompts: tuple[GridPrompt, ...]
    places: tuple[int, ...] = (0,)
    target: LocateTarget | None = None
    key: Key | None = None
    region_features: bool = False

    @property
    def is_foveal(self) -> bool:
        """Whether its prompt changes the trunk."""
        return self.prompts[0].fovea is not None

    @property
    def keeps_tokens(self) -> bool:
        """Whether the tokens are needed once the first prompt is answered."""
        return self.key is not None or self.target is not None or len(self.prompts) > 1 or self.region_features

    @property
    def nbytes(self) -> int:
        """Bytes of pixels, which wait for a batch."""
        return 0 if self.pixels is None else self.pixels.nbytes


class _Picture(NamedTuple):
    """An image that is at hand, or held: header None."""

    header: Header | None
    width: int
    height: int
    digest: bytes


def views_of(asked: Asked, *, grid: int, head_count: HeadCount, decode: Decode, held: HeldPictures) -> list[View]:
    """The views that answer a request, one for each part of the image that its prompts look at.

    Raises:
        ImageError: over a limit, which is checked before anything is decoded, or not decodable.
        PromptError: a mask of another size than the image, runs that do not fit, or nothing set.
        PictureNotHeld: the request gives a digest, and what it needs is not held.
        ExpensivePicture: see `Decode`.
    """
    picture = _picture(asked, decode, held)
    width, height = picture.width, picture.height
    if picture.header is not None:
        decode.check(picture.header)  # before masks of that size are expanded
    _check_masks(asked.pointings, width * height, decode)
    together: dict[tuple[Region | None, int], list[tuple[int, GridPrompt]]] = {}
    inside, last = np.empty((0, 0), np.bool_), None
    seen: dict[tuple[float, float], tuple[Region | None, GridPrompt]] = {}
    for place, (mask, focus) in enumerate(asked.pointings):
        region, prompt = None, whole_image()
        if mask is not None:
            if last is None or not same_mask(mask, last):
                inside, last, seen = expanded(mask, width, height), mask, {}
            where = focus.single_zoom, focus.fovea
            if where not in seen:
                seen[where] = focused(inside, focus, head_count(focus), grid)
            region, prompt = seen[where]
            prompt = prompt._replace(heads_on=head_count(focus), attention_shift=focus.attention_shift)
        # A foveal prompt changes the trunk, so that no other prompt shares it.
        alone = place if prompt.fovea is not None else -1
        together.setdefault((region, alone), []).append((place, prompt))
    if asked.target is not None:
        together[None, -1] = [(0, whole_image())]
    views = []
    for (region, alone), prompts in together.items():
        key = None
        if asked.owner is not None and alone < 0:
            key = Key(asked.owner, picture.digest, region)
        # What is held is rounded: bytes give the same embedding every time. To locate, that does not matter.
        reuse = picture.header is None or asked.target is not None
        tokens = held.get(key) if key is not None and reuse else None
        pixels = None
        if tokens is None:
            if picture.header is None:
                raise PictureNotHeld(_NOT_HELD)
            # Without zoom the pixels are those of the same image without a prompt.
            pixels = decode(picture.header, region)
        views.append(
            View(
                pixels=pixels,
                tokens=tokens,
                width=width,
                height=height,
                region=region or (0, 0, width, height),
                prompts=tuple(prompt for _, prompt in prompts),
                places=tuple(place for place, _ in prompts),
                target=asked.target,
                key=key,
                region_features=asked.region_features,
            )
        )
    return views


def prompts_of(prompts: Sequence[GridPrompt], heads: int, patches: int) -> PromptBatch[np.ndarray]:
    """A batch of prompts, for a model of so many heads and patches."""
    nothing = np.zeros(patches, np.float32)
    shifts = np.array([prompt.attention_shift for prompt in prompts], np.float32)
    foveas = [prompt.fovea for prompt in prompts]
    has_fovea = any(each is not None for each in foveas)
    return PromptBatch(
        masks=masks_of(prompts, patches),
        head_counts=np.array([prompt.heads_on or heads for prompt in prompts], np.int64),
        attention_shift=shifts if shifts.any() else None,
        fovea=np.stack([nothing if each is None else each for each in foveas]) if has_fovea else None,
    )


def masks_of(prompts: Sequence[GridPrompt], patches: int) -> Float32Array:
    """float32 [B, N]; zeros without a prompt."""
    nothing = np.zeros(patches, np.float32)
    return np.stack([nothing if prompt.mask is None else prompt.mask for prompt in prompts])


def _check_masks(pointings: Sequence[Pointing], pixels: int, decode: Decode) -> None:
    """Masks are expanded to the picture's pixels and brought to the grid, one after the other, each at every zoom: a
    millisecond for every 200,000."""
    looks = [(mask, focus.single_zoom, focus.fovea) for mask, focus in pointings if mask is not None]
    distinct = bool(looks) + sum(
        one[1:] != other[1:] or not same_mask(one[0], other[0]) for one, other in pairwise(looks)
    )
    if distinct > 1 and distinct * pixels > MOST_MASK_PIXELS:
        most = max(1, MOST_MASK_PIXELS // pixels)
        raise InvalidInput(f"{distinct} masks of a picture of {pixels} pixels; send {most} in one request", "prompts")
    if distinct * pixels > _USUAL_MASK_PIXELS and not decode.take_expensive:
        raise ExpensivePicture


def same_mask(one: MaskRuns, other: MaskRuns) -> bool:
    """Whether two masks select the same pixels."""
    return (one.width, one.height) == (other.width, other.height) and np.array_equal(one.runs, other.runs)


def _picture(asked: Asked, decode: Decode, held: HeldPictures) -> _Picture:
    if asked.image:
        header = checked_header(asked.image, decode.limits)
        digest = b"" if asked.owner is None else hashlib.sha256(asked.image).digest()
        return _Picture(header, *header.upright_size, digest)
    size = None if asked.owner is None else held.size_of(asked.owner, asked.digest)
    if size is None:
        raise PictureNotHeld(_NOT_HELD)
    return _Picture(None, *size, asked.digest)
