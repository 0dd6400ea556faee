"""Which heads a method keeps: by the prompt, against it, at random, or the same for every query.

Q = queries, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Float32Array

PICKS = ("top", "bottom", "random", "all")


def head_weights(scores: Float32Array, count: int, *, pick: str = "top", scaled: bool = True) -> Float32Array:
    """Weights float32 [Q, H] that keep `count` heads of each query.

    Args:
        scores: float32 [Q, H], each head's share of attention on the prompt. Of equal scores the lower index wins.
        pick: "top" is PHS. Controls: "bottom" keeps the lowest scores, "random" is a draw per query, and "all" keeps
            every head at count / H of its weight, which shows what damping does without choosing.
        scaled: kept heads weigh H / count, so that the total is kept, as published; else 1.
    """
    queries, heads = scores.shape
    if not 1 <= count <= heads:
        raise InvalidInput(f"{count} heads of {heads} cannot be kept", "heads")
    if pick not in PICKS:
        raise InvalidInput(f"'{pick}' is not one of {', '.join(PICKS)}", "pick")
    if pick == "all":
        return np.full((queries, heads), 1.0 if scaled else count / heads, np.float32)
    if pick == "random":
        order = np.stack([_draw(row) for row in scores])
    else:
        order = np.argsort(scores if pick == "bottom" else -scores, axis=1, kind="stable")
    weights = np.zeros((queries, heads), np.float32)
    np.put_along_axis(weights, order[:, :count], heads / count if scaled else 1.0, axis=1)
    return weights


def _draw(row: Float32Array) -> npt.NDArray[np.int64]:
    """A permutation of the heads, seeded by the query's own scores: the same however queries are grouped."""
    return np.random.default_rng(np.frombuffer(row.tobytes(), np.uint32)).permutation(len(row))


def fixed_weights(kept: Sequence[int], heads: int) -> Float32Array:
    """float32 [H]: H / len(kept) for the heads kept."""
    weights = np.zeros(heads, np.float32)
    weights[list(kept)] = heads / len(kept)
    return weights
