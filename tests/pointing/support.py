"""A small image's size, random masks and coordinates, and what a bad prompt's error says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from phs_milvus.contract.errors import PromptError
from phs_milvus.pointing.prompts import to_array

W, H = 13, 9
masks = st.integers(1, 12).flatmap(
    lambda h: st.integers(1, 12).flatmap(
        lambda w: st.lists(st.booleans(), min_size=h * w, max_size=h * w).map(
            lambda bits: np.array(bits, dtype=bool).reshape(h, w)
        )
    )
)
set_masks = masks.filter(np.any)
coordinates = st.floats(-20, 30, allow_nan=False)


def rectangle(x0: int, y0: int, x1: int, y1: int, width: int = W, height: int = H) -> np.ndarray:
    expected = np.zeros((height, width), dtype=bool)
    expected[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return expected


def error_of(prompt: object, width: int = W, height: int = H) -> str:
    with pytest.raises(PromptError) as caught:
        to_array(prompt, width, height)  # type: ignore[arg-type]
    assert caught.value.field in ("prompt", "mask")
    return str(caught.value)
