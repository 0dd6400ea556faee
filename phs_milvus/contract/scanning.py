"""What a scan asks for and what it finds: queries against all states that a server holds in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float32Array

# Queries in one scan, keys in one of its rankings, and keys that it may be restricted to.
MOST_QUERIES = 64
MOST_KEYS = 16_384
MOST_ALLOWED = 2**22

Key = str | int


class PackedKeys(NamedTuple):
    """K primary keys as they travel: numbers, or texts.

    numbers: int64 [K]; None where they are texts.
    texts, ends: UTF-8, and uint32 [K]: where in it each text ends, ascending.
    """

    numbers: npt.NDArray[np.int64] | None
    texts: bytes
    ends: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.ends if self.numbers is None else self.numbers)


class ScanInputs(NamedTuple):
    """Q queries, and how R rankings are made of their scores.

    embeddings: float32 [Q, E]; head_weights: float32 [Q, H]; limit: keys in a ranking, at most.
    keys: the only rows that are looked at; None: all.
    shares: float32 [R, Q]; None: a ranking for each query.
    """

    embeddings: Float32Array
    head_weights: Float32Array
    limit: int
    keys: PackedKeys | None
    shares: Float32Array | None


@dataclass(frozen=True, eq=False)
class ScanRanking:
    """The best n rows, the best first; of equal ones the first in the file.

    Attributes:
        keys: n primary keys.
        scores: float32 [n], what the ranking is by.
        query_scores: float32 [n, Q], each query's cosine similarity; None where no shares were given.
    """

    keys: Sequence[Key]
    scores: Float32Array
    query_scores: Float32Array | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a scan found, and in what.

    Attributes:
        rankings: one for each row of `shares`, or for each query.
        collection: the one that was exported into the file.
        exported_at: when the export began (UTC); what changed later is not seen.
        rows: in the file.
        scored: rows that were looked at.
    """

    rankings: Sequence[ScanRanking]
    collection: str
    exported_at: datetime
    rows: int
    scored: int
