"""Exact Query-DB PHS reranking, with or without Milvus.

    reranker = Reranker(encoder)
    query = reranker.query("street.jpg", Box(40, 60, 180, 220))
    ranking = reranker.rerank_states(query, states)             # states: float16 [K, 2, D]
    best = [my_candidates[i] for i in ranking.indices]

The paper re-encodes every candidate with the query's heads; a stored PHS state gives the same scores (DESIGN.md
section 2, Query-DB).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import InvalidInput, PhsError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.zooms import encode_zooms, query_db_scores


@dataclass(frozen=True, eq=False)
class Ranking:
    """Candidates in falling order of score; of equal scores the one given first comes first.

    Attributes:
        indices: int64 [k], positions in the candidates given.
        scores: float32 [k], cosine similarity of the query and the candidate read out with the query's heads.
        failed: candidate images that could not be encoded, by position; they are not ranked.
    """

    indices: npt.NDArray[np.int64]
    scores: Float32Array
    failed: dict[int, PhsError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


class Reranker:
    """Ranks candidates by what the query points at."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def query(self, image: ImageSource, prompt: Prompt | None = None, *, focus: Focus = Focus()) -> Encoding:
        """Encodes a query once, at each scale of its focus, for use with any number of candidate lists."""
        return encode_zooms(self._encoder, image, prompt, focus)

    def scores(self, query: Encoding, states: Float16Array) -> Float32Array:
        """float32 [K] scores of states [K, 2, D], in their order; the mean over the query's scales.

        Raises:
            InvalidInput: a query without head weights, which `Reranker.query` asks for and a plain encode does not.
        """
        return query_db_scores(self._encoder, query, states)

    def rerank_states(self, query: Encoding, states: Float16Array, *, top_k: int | None = None) -> Ranking:
        """Ranks candidates by their stored states, float16 [K, 2, D]; K = 0 gives an empty ranking."""
        if len(states) == 0:
            return Ranking(np.empty(0, np.int64), np.empty(0, np.float32))
        return _ranked(self.scores(query, states), np.arange(len(states)), top_k, {})

    def rerank_images(self, query: Encoding, images: Sequence[ImageSource], *, top_k: int | None = None) -> Ranking:
        """Ranks candidate images that have no stored state: each is encoded first, which takes far longer."""
        states, positions, failed = [], [], {}
        for position, result in enumerate(self._encoder.encode_many(images, outputs=Outputs(state=True))):
            if isinstance(result, PhsError):
                failed[position] = result
            elif result.state is not None:
                states.append(result.state)
                positions.append(position)
        if not states:
            return Ranking(np.empty(0, np.int64), np.empty(0, np.float32), failed)
        return _ranked(self.scores(query, np.stack(states)), np.array(positions), top_k, failed)


def _ranked(
    scores: Float32Array, positions: npt.NDArray[np.int64], top_k: int | None, failed: dict[int, PhsError]
) -> Ranking:
    if top_k is not None and top_k < 1:
        raise InvalidInput(f"must be at least 1 or None, got {top_k}", "top_k")
    order = np.argsort(-scores, kind="stable")[:top_k]
    return Ranking(positions[order], scores[order], failed)
