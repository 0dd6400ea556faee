"""The values that travel between the parts: frozen, without behaviour beyond checking themselves.

H = attention heads of the model's last layer, D = hidden size, E = embedding size (docs/DESIGN.md, "The method").
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput, PromptError
from phs_milvus.contract.int8_states import Int8States

Float32Array = npt.NDArray[np.float32]
Float16Array = npt.NDArray[np.float16]
# How states are stored and sent; phs_milvus.contract.state says what each format is.
StateFormat = Literal["float16", "int8"]
# K states in either of them; float16 [K, 2, D].
States: TypeAlias = "Float16Array | Int8States"
Region = tuple[int, int, int, int]

# No model has more heads; a larger number is a mistake.
_MOST_HEADS = 2**16
# Added to attention logits: all of the attention is on one patch long before.
_MOST_FOVEA = 1000.0


@dataclass(frozen=True)
class Focus:
    """How to focus on a prompt. The defaults are what held up on every kind of picture measured (benchmarks/quality).

    Attributes:
        heads_on: attention heads to keep (h_on in the paper, section 3.2). None: the model's default, which is 5 for
            models of 12 or 16 heads, 1 for 24 and about a third below 12. "all": every head, so that none is selected.
        attention_shift: share of the last layer's [CLS] attention that is moved onto the prompt's region, from 0 (none,
            as published) to 1 (all of it). Called roi on the command line and in tables.
        zoom: 0 encodes the whole image; 1 or more encodes the crop around the prompt's bounding box, its sides grown by
            this factor and clipped to the image. Several values, for example (0, 2), make one query at several zooms:
            search encodes it once for each, and averages embeddings in stage one and scores in the reranking.
        fovea: alpha of foveal attention, a baseline of the paper (0.2 there); for evaluation only.
        ann_heads: as heads_on, for the embedding that stage one of a search compares with those in Milvus, which are
            read out with every head. None: the same heads as heads_on. FocusedSearch and Reranker use it; a single
            encoding, as of `Encoder.encode`, has one embedding, that of heads_on, and ignores it.

    Only the query changes: a collection serves any focus.

    Raises:
        InvalidInput: a value out of its range.
    """

    heads_on: int | Literal["all"] | None = None
    attention_shift: float = 1.0
    zoom: float | tuple[float, ...] = 0.0
    fovea: float = 0.0
    ann_heads: int | Literal["all"] | None = "all"

    def __post_init__(self) -> None:
        if isinstance(self.zoom, (list, tuple)):  # one zoom has one form, so that equal focuses are equal
            zooms = tuple(self.zoom)
            object.__setattr__(self, "zoom", zooms[0] if len(zooms) == 1 else zooms)
        for name, heads in (("heads_on", self.heads_on), ("ann_heads", self.ann_heads)):
            is_count = isinstance(heads, Integral) and 1 <= heads <= _MOST_HEADS
            if not (heads is None or heads == "all" or is_count):
                raise InvalidInput(f"{name} must be a whole number from 1, 'all' or None, got {heads!r}", "focus")
        if not all(isinstance(value, Real) for value in (self.attention_shift, self.fovea, *self.zooms)):
            raise InvalidInput(f"attention_shift, zoom and fovea must be numbers, got {self}", "focus")
        if not 0 <= self.attention_shift <= 1:
            raise InvalidInput(f"attention_shift must be 0 to 1, got {self.attention_shift}", "focus")
        if not self.zooms or not all(zoom == 0 or 1 <= zoom < math.inf for zoom in self.zooms):
            raise InvalidInput(f"zoom must be 0 (the whole image) or at least 1, got {self.zoom}", "focus")
        if not 0 <= self.fovea <= _MOST_FOVEA:
            raise InvalidInput(f"fovea must be 0 to {_MOST_FOVEA:g}, got {self.fovea:g}", "focus")

    @classmethod
    def paper(cls, heads_on: int | Literal["all"] | None = None) -> Focus:
        """PHS as published: head selection on the whole image, nothing else. Search with it by score="query_db"."""
        return cls(heads_on, attention_shift=0.0, ann_heads=None)

    @classmethod
    def robust(cls) -> Focus:
        """The best over clean boxes, jittered boxes and clicks: full attention shift at three zooms, every head kept.

        All five folds chose it on 991 VOC images with a model of 3 heads (benchmarks/quality/robustness). With many
        heads selection may help as well: `phs-milvus tune` tells. A query costs three encodings.
        """
        return cls("all", attention_shift=1.0, zoom=(0.0, 1.25, 2.0))

    @property
    def zooms(self) -> tuple[float, ...]:
        """`zoom` as a tuple, also where it is one number."""
        return self.zoom if isinstance(self.zoom, tuple) else (self.zoom,)

    @property
    def per_zoom(self) -> tuple[Focus, ...]:
        """This focus at each of its zooms: as many as `zoom` has values, each with one."""
        return tuple(replace(self, zoom=zoom) for zoom in self.zooms)

    @property
    def stage_one(self) -> Focus:
        """This focus as the embedding of stage one is read out: with the heads of `ann_heads`."""
        return self if self.ann_heads is None else replace(self, heads_on=self.ann_heads, ann_heads=None)

    @property
    def stage_two(self) -> Focus:
        """This focus as Query-DB reads it out: with the heads of `heads_on`."""
        return replace(self, ann_heads=None)

    @property
    def single_zoom(self) -> float:
        """The zoom of a focus that has one.

        Raises:
            InvalidInput: it has several.
        """
        if len(self.zooms) > 1:
            raise InvalidInput(
                "has several zooms, which FocusedSearch and Reranker take; a single encoding has one zoom", "focus"
            )
        return self.zooms[0]

    def head_count(self, heads: int, default: int) -> int:
        """How many of a model's `heads` attention heads are kept; `default` if this focus names no number."""
        return heads if self.heads_on == "all" else self.heads_on or default


class Pointing(NamedTuple):
    """What to look at in an image, and how.

    mask: None for the whole image, every head with weight 1; focus is then ignored.
    """

    mask: MaskRuns | None
    focus: Focus


@dataclass(frozen=True, eq=False)
class MaskRuns:
    """A binary mask as run lengths, the form that travels on the wire.

    Attributes:
        width, height: pixels of the upright image.
        runs: uint32 [R], row-major, alternating zeros and ones, zeros first (the first may be 0);
            their sum is width * height.
    """

    width: int
    height: int
    runs: npt.NDArray[np.uint32]

    @classmethod
    def from_array(cls, mask: npt.NDArray[np.bool_]) -> MaskRuns:
        """Encodes a bool [height, width] array."""
        flat = mask.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate(([0], changes, [flat.size]))
        runs = np.diff(edges)
        if flat.size and flat[0]:
            runs = np.concatenate(([0], runs))
        return cls(width=mask.shape[1], height=mask.shape[0], runs=runs.astype(np.uint32))

    def to_array(self) -> npt.NDArray[np.bool_]:
        """Decodes to bool [height, width].

        Raises:
            PromptError: the runs do not sum to width * height. Checked before anything of that size is allocated.
        """
        total = int(self.runs.sum(dtype=np.uint64))
        if total != self.width * self.height:
            raise PromptError(
                f"runs sum to {total} pixels, but the mask is {self.width}x{self.height} = {self.width * self.height}",
                "mask",
            )
        values = np.zeros(len(self.runs), dtype=np.bool_)
        values[1::2] = True
        return np.repeat(values, self.runs).reshape(self.height, self.width)


# Readouts (distinct head weights x states) that one Rerank request may ask for: seconds of work on two CPU cores with
# D = 1024, well within a call's timeout.
MOST_READOUTS = 100_000


# Pixels of distinct masks that one Encode request may hold together: a second or two of work.
MOST_MASK_PIXELS = 2**28


class RerankInputs(NamedTuple):
    """Q queries and the K stored states that each of them is to be scored against.

    embeddings: float32 [Q, E]; head_weights: float32 [Q, H]; states: float16 [K, 2, D] or Int8States.
    """

    embeddings: Float32Array
    head_weights: Float32Array
    states: States


@dataclass(frozen=True)
class Timings:
    """Milliseconds that one item spent in the server.

    Attributes:
        decode_ms: decoding and resizing the image, and bringing the mask to the patch grid.
        queue_ms: waiting to be decoded, and then for a batch.
        compute_ms: in the model, for the whole batch.
    """

    decode_ms: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the server returns for one image. Fields that were not asked for are None; arrays may be read-only.

    Attributes:
        embedding: float32 [E], of norm 1, read out with `head_weights`; where `query_db_embedding` is there, with the
            heads of `Focus.ann_heads` instead.
        state: float16 [2, D], the PHS state (residual, heads) that `embedding` was read out from; depends on the
            prompt only where the focus has an attention shift, a zoom or fovea.
        head_scores: float32 [H] in [0, 1], the share of each head's attention that is on the prompt; None without a
            prompt.
        head_weights: float32 [H], H / heads_on for the selected heads and 0 for the others; ones without a prompt.
        timings: milliseconds in each stage of the server.
        width, height: size of the upright image in pixels.
        attention: float32 [H, grid_height, grid_width], as in `Explanation`.
        mask: float32 [grid_height, grid_width] in [0, 1], the prompt on the patch grid; None without a prompt.
        region: the part of the image that the grids span, which is the crop where the focus has a zoom.
        region_feature: float32 [D] of norm 1, the mean of the last layer's patch tokens inside the prompt, which
            locating compares with those of other images; None without a prompt.
        query_db_embedding: float32 [E], of norm 1, read out with `head_weights`, for Query-DB scores: of a search's
            query whose stage one keeps other heads than its stage two; else None, and `embedding` is used for both.
        per_zoom: the encodings at each zoom where the focus has several; `embedding` is then their normalised mean and
            the other fields are those of the first zoom.
    """

    embedding: Float32Array | None
    state: Float16Array | None
    head_scores: Float32Array | None
    head_weights: Float32Array | None
    timings: Timings | None
    width: int
    height: int
    attention: Float32Array | None = None
    mask: Float32Array | None = None
    region: Region | None = None
    region_feature: Float32Array | None = None
    query_db_embedding: Float32Array | None = None
    per_zoom: tuple[Encoding, ...] = ()

    def required(self, name: Literal["embedding", "state", "head_weights"]) -> npt.NDArray[Any]:
        """The output of this name.

        Raises:
            InvalidInput: it was not asked for.
        """
        array: npt.NDArray[Any] | None = getattr(self, name)
        if array is None:
            raise InvalidInput(f"has no {name.replace('_', ' ')}; ask for it when encoding, by Outputs", "encoding")
        return array


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which patches each attention head of the last layer attends to.

    Attributes:
        attention: float32 [H, grid_height, grid_width], the [CLS] row over the patches, after the attention shift.
        mask: float32 [grid_height, grid_width] in [0, 1], the prompt on the patch grid; None without a prompt.
        head_scores, head_weights: as in `Encoding`.
        width, height: size of the upright image in pixels.
        region: x0, y0, x1, y1 in pixels of the upright image, x1 and y1 exclusive: the part of the image that the
            grids span, which is the crop where the focus has a zoom.
    """

    attention: Float32Array
    mask: Float32Array | None
    head_scores: Float32Array | None
    head_weights: Float32Array
    width: int
    height: int
    region: Region

    @property
    def selected_heads(self) -> list[int]:
        """Indices of the heads that are kept, ascending."""
        return [int(head) for head in np.flatnonzero(self.head_weights)]


@dataclass(frozen=True)
class Limits:
    """A server's limits on one request.

    Attributes:
        image_bytes: bytes of an encoded image.
        image_pixels: width x height of a decoded image.
        message_bytes: bytes of a gRPC message, either way.
    """

    image_bytes: int = 32 * 2**20
    image_pixels: int = 100_000_000
    message_bytes: int = 64 * 2**20


@dataclass(frozen=True)
class ModelInfo:
    """The model behind a server. Embeddings may be compared only between equal `fingerprint`s.

    Attributes:
        model_id: as given to the server: a hub id or a directory.
        model_type: transformers' name of the architecture.
        fingerprint: hash of weights, configuration and preprocessing (image size included, precision not).
        heads, hidden_size, embedding_size: H, D, E.
        grid_height, grid_width: patches.
        image_size: side of the model's square input in pixels.
        default_heads: heads kept where `Focus.heads_on` is None.
        precision: "float32", "bfloat16" or "float16".
        state_formats: what the server reads of states; "float16" always.
    """

    model_id: str
    model_type: str
    fingerprint: str
    heads: int
    hidden_size: int
    embedding_size: int
    grid_height: int
    grid_width: int
    image_size: int
    default_heads: int
    precision: str
    limits: Limits
    state_formats: tuple[StateFormat, ...] = ("float16",)
