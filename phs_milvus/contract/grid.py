"""The patch grid: masks on it, which the server computes for every prompt and evaluation for prompts that need no
encoding; and the blobs of what stands out on it, which both draw boxes around."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.types import Float32Array


def shares_on_grid(inside: npt.NDArray[np.bool_], rows: int, columns: int) -> Float32Array:
    """The share of each patch that a mask covers, exact to float rounding.

    Args:
        inside: bool [height, width].
        rows, columns: patches down and across; they span the mask, whatever its size.

    Returns:
        float32 [rows * columns] in [0, 1], row-major. Any mask with a pixel set has a share above 0 somewhere.

    Raises:
        PromptError: nothing set.
    """
    height, width = inside.shape
    across = _overlap(columns, width)
    # One band of pixels per row of patches keeps the float copy of a large mask small.
    bands = []
    for weights in _overlap(rows, height):
        touched = np.flatnonzero(weights)
        start, stop = touched[0], touched[-1] + 1
        bands.append(across @ (weights[start:stop] @ inside[start:stop].astype(np.float32)))
    shares = np.stack(bands).reshape(-1).astype(np.float32)
    if not shares.any():
        raise PromptError("selects no pixel", "mask")
    return np.minimum(shares, 1.0)


def _overlap(cells: int, size: int) -> Float32Array:
    """float32 [cells, size]: the share of cell i that pixel x covers, when `cells` equal cells span `size` pixels."""
    edges = np.arange(cells + 1) * (size / cells)
    pixels = np.arange(size)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: Float32Array = (np.clip(shared, 0, None) / (size / cells)).astype(np.float32)
    return shares


def blobs(inside: npt.NDArray[np.bool_]) -> Iterator[list[tuple[int, int]]]:
    """The (row, column) of the cells of each set of set cells that touch, corners not counted."""
    left = {(int(row), int(column)) for row, column in np.argwhere(inside)}
    while left:
        blob = [left.pop()]
        for row, column in blob:
            for cell in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if cell in left:
                    left.remove(cell)
                    blob.append(cell)
        yield blob
