"""Plain values that travel between the parts: frozen, no behaviour beyond their own consistency.

H = attention heads of the model's last layer, D = hidden size, E = embedding size (DESIGN.md section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput, PromptError

Float32Array = npt.NDArray[np.float32]
Float16Array = npt.NDArray[np.float16]
Region = tuple[int, int, int, int]

# As `Focus.heads`: every head, however many the model has, so that none is selected.
ALL_HEADS = 2**32 - 1


@dataclass(frozen=True)
class Focus:
    """How to focus on a prompt.

    Attributes:
        heads: attention heads to keep (h_on in the paper, section 3.2); None means the model's default:
            5 for models of 12 or 16 heads, 1 for 24, about a third below 12. ALL_HEADS keeps them all.
        roi: share of the last layer's [CLS] attention that is moved onto the prompt, 0 (none) to 1 (all of it).
        zoom: 0 looks at the whole image; 1 or more at the crop around the prompt's bounding box, its sides grown by
            this factor and clipped to the image. Several values, for example (0, 2), are scales of one query: search
            encodes it once for each, and averages embeddings in stage one and scores in the reranking.
        fovea: alpha of foveal attention, a baseline of the paper (0.2 there); for evaluation only.

    Only the query changes: a collection serves any focus.
    """

    heads: int | None = None
    roi: float = 0.0
    zoom: float | tuple[float, ...] = 0.0
    fovea: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.zoom, list):
            object.__setattr__(self, "zoom", tuple(self.zoom))
        if self.heads is not None and not (isinstance(self.heads, Integral) and 1 <= self.heads <= ALL_HEADS):
            raise InvalidInput(f"heads must be a whole number from 1, or None, got {self.heads!r}", "focus")
        if not all(isinstance(value, Real) for value in (self.roi, self.fovea, *self._zooms)):
            raise InvalidInput(f"roi, zoom and fovea must be numbers, got {self}", "focus")
        if not 0 <= self.roi <= 1:
            raise InvalidInput(f"roi must be 0 to 1, got {self.roi}", "focus")
        if not self._zooms or not all(zoom == 0 or 1 <= zoom < math.inf for zoom in self._zooms):
            raise InvalidInput(f"zoom must be 0 (the whole image) or at least 1, got {self.zoom}", "focus")
        if not 0 <= self.fovea < math.inf:
            raise InvalidInput(f"fovea must be 0 or more, got {self.fovea}", "focus")

    @classmethod
    def paper(cls) -> Focus:
        """PHS as published: the model's default head count on the whole image, nothing else."""
        return cls()

    @classmethod
    def robust(cls) -> Focus:
        """What held up best over clean boxes, jittered boxes and clicks: roi at three scales, no head selection.

        All five folds chose it on 991 VOC images with a model of 3 heads (benchmarks/quality/robustness). With many
        heads selection may help as well: `phs-milvus tune` tells. A query costs three encodings.
        """
        return cls(ALL_HEADS, roi=1.0, zoom=(0.0, 1.25, 2.0))

    @property
    def scales(self) -> tuple[Focus, ...]:
        """This focus at each of its scales: as many as `zoom` has values, each with one."""
        return tuple(replace(self, zoom=zoom) for zoom in self._zooms)

    @property
    def only_zoom(self) -> float:
        """The zoom of a focus with one scale; InvalidInput where there are several."""
        if len(self._zooms) > 1:
            raise InvalidInput(
                "has several scales, which is for FocusedSearch and Reranker; an encoding has one", "focus"
            )
        return self._zooms[0]

    @property
    def _zooms(self) -> tuple[float, ...]:
        return self.zoom if isinstance(self.zoom, tuple) else (self.zoom,)


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


@dataclass(frozen=True)
class Timings:
    """Milliseconds one item spent in the server: decoding, waiting for a decode thread and then for a batch, and in
    its batch's computation."""

    decode_ms: float
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, eq=False)
class Encoding:
    """What the server returns for one image. Fields that were not asked for are None.

    Attributes:
        embedding: float32 [E], l2-normalised, read out with `head_weights`.
        state: float16 [2, D], the PHS state (residual, heads) that `embedding` was read out from; depends on the
            prompt only where the focus has roi, zoom or fovea.
        head_scores: float32 [H], share of each head's attention on the prompt; None without a prompt.
        head_weights: float32 [H], H / heads for selected heads, else 0; ones without a prompt.
        width, height: upright image size in pixels.
        attention: float32 [H, grid_height, grid_width], as in `Explanation`.
        scales: the encodings at each scale where the focus has several; `embedding` is then their normalised mean and
            the other fields are those of the first scale.
    """

    embedding: Float32Array | None
    state: Float16Array | None
    head_scores: Float32Array | None
    head_weights: Float32Array | None
    timings: Timings | None
    width: int
    height: int
    attention: Float32Array | None = None
    scales: tuple[Encoding, ...] = ()


@dataclass(frozen=True, eq=False)
class Explanation:
    """What each head of the last layer looks at.

    Attributes:
        attention: float32 [H, grid_height, grid_width], the [CLS] row over the patches, after roi.
        mask: float32 [grid_height, grid_width] in [0, 1], the prompt on the patch grid; None without a prompt.
        head_scores: float32 [H]; None without a prompt.
        head_weights: float32 [H].
        width, height: upright image size in pixels.
        region: x0, y0, x1, y1 in pixels, exclusive: what the grids span, which is the crop where the focus has a zoom.
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
    """What one request may hold: bytes of an encoded image, pixels of a decoded one, bytes of a gRPC message."""

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
        default_heads: heads kept where `Focus.heads` is None.
        precision: "float32", "bfloat16" or "float16".
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
