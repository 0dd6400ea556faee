"""The named scores of a search.

ann        cosine of the query's stage-one embedding and the row's stored embedding
query_db   cosine of the query and the row, both read out with the query's heads (docs/DESIGN.md, "The method")
blend      the mean of both
"""

from __future__ import annotations

from numbers import Real
from typing import Literal, TypeAlias, get_args

import numpy as np

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Float32Array

Score: TypeAlias = Literal["blend", "query_db", "ann"]
SCORES: tuple[Score, ...] = get_args(Score)


def blended(ann: Float32Array, query_db: Float32Array) -> Float32Array:
    """The "blend" score of each candidate."""
    blend: Float32Array = (ann + query_db) * np.float32(0.5)
    return blend


def check_score(score: str, min_score: float | None) -> None:
    """Raises InvalidInput unless there is a score of this name, and `min_score` is one that it can take, or None."""
    if score not in SCORES:
        raise InvalidInput(f"must be one of {', '.join(SCORES)}, got {score!r}", "score")
    if min_score is not None and not (isinstance(min_score, Real) and -1 <= min_score <= 1):
        raise InvalidInput(f"must be -1 to 1, as scores are, or None; got {min_score!r}", "min_score")
