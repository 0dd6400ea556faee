"""The share of each patch that a mask covers, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phs_milvus.contract.errors import PromptError
from phs_milvus.contract.grid import shares_on_grid


def plain_shares(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Area shares by brute force: each pixel split into rows x columns equal parts, each part in exactly one cell."""
    fine = mask.repeat(rows, axis=0).repeat(columns, axis=1).astype(np.float64)
    height, width = mask.shape
    return fine.reshape(rows, height, columns, width).mean(axis=(1, 3))


@given(
    st.integers(1, 23),
    st.integers(1, 23),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
    st.floats(0.02, 0.98),
)
def test_grid_shares_are_exact_areas(
    width: int, height: int, rows: int, columns: int, seed: int, density: float
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    if not mask.any():
        mask[0, 0] = True
    shares = shares_on_grid(mask, rows, columns)
    assert shares.dtype == np.float32 and shares.shape == (rows * columns,)
    assert np.abs(shares.reshape(rows, columns) - plain_shares(mask, rows, columns)).max() < 1e-5
    assert shares.any()


def test_one_pixel_of_a_large_image_never_vanishes() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[1234, 2345] = True
    shares = shares_on_grid(mask, 16, 16)
    assert (shares > 0).sum() == 1
    assert shares.reshape(16, 16)[1234 * 16 // 3000, 2345 * 16 // 4000] == pytest.approx(256 / 12e6, rel=1e-4)


def test_an_empty_mask_is_an_error() -> None:
    with pytest.raises(PromptError, match="selects no pixel"):
        shares_on_grid(np.zeros((3, 4), bool), 2, 2)
