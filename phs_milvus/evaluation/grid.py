"""A mask on the patch grid, computed here so that moved prompts need no encoding; equal to the server's own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float32Array


def shares_on_grid(mask: npt.NDArray[np.bool_], rows: int, columns: int) -> Float32Array:
    """The share of each patch that a bool [height, width] mask covers: float32 [rows, columns] in [0, 1]."""
    covered = _binned(_binned(mask.astype(np.float64), rows).T, columns).T
    return np.clip(covered * rows * columns / mask.size, 0, 1).astype(np.float32)


def _binned(values: npt.NDArray[np.float64], cells: int) -> npt.NDArray[np.float64]:
    """Sums [size, m] over equal, possibly fractional, cells of axis 0: differences of the interpolated running sum."""
    running = np.vstack([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    edges = np.linspace(0, len(values), cells + 1)
    whole = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - whole)[:, None]
    return np.diff((1 - part) * running[whole] + part * running[whole + 1], axis=0)
