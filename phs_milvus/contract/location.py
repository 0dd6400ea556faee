"""What is looked for in images, and where it was found.

H = attention heads of the model's last layer, D = hidden size, E = embedding size (docs/DESIGN.md, "Beyond the paper").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Float32Array, Region

MOST_BOXES = 256


@dataclass(frozen=True, eq=False)
class LocateTarget:
    """What to look for in images.

    Attributes:
        embedding: float32 [E], of the query.
        head_weights: float32 [H], which `embedding` was read out with.
        region_feature: float32 [D], `Encoding.region_feature` of the query; None: boxes are less exact.
        all_heads_embedding: float32 [E], of the query, read out with every head; None: the peak is less exact.
        limit: boxes per image at most.
        threshold: in (0, 1), where between the smallest and the largest value of an image's map its boxes end; None:
            the server's default.

    Raises:
        InvalidInput: `limit` or `threshold` is out of range.
    """

    embedding: Float32Array
    head_weights: Float32Array
    region_feature: Float32Array | None = None
    all_heads_embedding: Float32Array | None = None
    limit: int = 5
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST_BOXES:
            raise InvalidInput(f"must be 1 to {MOST_BOXES} in each image, got {self.limit}", "boxes")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InvalidInput(f"must be above 0 and below 1, got {self.threshold}", "threshold")

    @property
    def arrays(self) -> tuple[Float32Array | None, ...]:
        """The tensors, in the order of the attributes."""
        return self.embedding, self.head_weights, self.region_feature, self.all_heads_embedding


class LocatedBox(NamedTuple):
    """A part of an image in which the thing may be.

    region: x0, y0, x1, y1 in pixels of the upright image, x1 and y1 exclusive.
    score: in [-1, 1], the best cosine in it: how much a patch is like the query.
    """

    region: Region
    score: float


@dataclass(frozen=True, eq=False)
class Location:
    """Where in an image the thing is that a query looks at. Whether it is there at all, the scores tell.

    Attributes:
        evidence: float32 [grid_height, grid_width], how much speaks for each patch, as z-scores over the image.
        peak: x, y in pixels of the upright image, where the evidence is largest.
        boxes: best first; at least one.
        score: in [-1, 1], the cosine of the query and this image, read out with the query's heads and with all of their
            attention on what was located: the third stage's score.
        match: in [-1, 1], the mean cosine of the five best patches and the query's region feature; 0 without one.
        width, height: size of the upright image in pixels.
    """

    evidence: Float32Array
    peak: tuple[float, float]
    boxes: tuple[LocatedBox, ...]
    score: float
    match: float
    width: int
    height: int
