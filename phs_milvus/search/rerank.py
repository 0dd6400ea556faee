"""Exact Query-DB PHS reranking, with or without Milvus.

    reranker = Reranker(encoder)
    query = reranker.query("street.jpg", Box(40, 60, 180, 220))
    ranking = reranker.rerank_states(query, states)             # states: float16 [K, 2, D]
    best = [my_candidates[i] for i in ranking.indices]

The paper re-encodes every candidate with the query's heads; a stored PHS state gives the same scores (docs/DESIGN.md,
"The method").
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
from phs_milvus.contract.types import Encoding, Float32Array, Focus, States
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.parts import parts_of
from phs_milvus.search.zooms import encode_zooms


@dataclass(frozen=True, eq=False)
class Ranking:
    """k candidates, best first; candidates of equal score keep the order in which they were given.

    Attributes:
        indices: int64 [k], each candidate's position among those given.
        scores: float32 [k], the cosine similarity of the query and the candidate, read out with the query's heads.
        failed: the errors of candidate images that could not be encoded, by position; these are not ranked.
    """

    indices: npt.NDArray[np.int64]
    scores: Float32Array
    failed: dict[int, PhsError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)


class Reranker:
    """Ranks candidates by their similarity to the thing that the query points at."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def query(self, image: ImageSource, prompt: Prompt | None = None, *, focus: Focus = Focus()) -> Encoding:
        """Encodes a query for both stages at each zoom of its focus, once for any number of candidate lists.

        Takes and raises what `Encoder.encode` does; the result holds head scores and head weights.
        """
        return encode_zooms(self._encoder, image, prompt, focus)

    def scores(self, query: Encoding, states: States) -> Float32Array:
        """Query-DB scores of K states, in their order: cosine similarities, averaged over the query's zooms.

        Args:
            query: from `Reranker.query`, or encoded with Outputs(head_weights=True).
            states: float16 [K, 2, D] or Int8States.

        Returns:
            float32 [K].

        Raises:
            InvalidInput: the query has no head weights, or the states do not fit the model.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        return parts_of([query]).query_db_scores(self._encoder, states)

    def rerank_states(self, query: Encoding, states: States, *, top_k: int | None = None) -> Ranking:
        """Ranks candidates by their stored states, float16 [K, 2, D] or Int8States; no states give an empty ranking.

        Args:
            top_k: number of candidates to keep; None: all.

        Raises:
            InvalidInput: `top_k` is below 1, and what `scores` raises.
        """
        if len(states) == 0:
            return Ranking(np.empty(0, np.int64), np.empty(0, np.float32))
        return _ranked(self.scores(query, states), np.arange(len(states)), top_k, {})

    def rerank_images(self, query: Encoding, images: Sequence[ImageSource], *, top_k: int | None = None) -> Ranking:
        """Ranks candidate images without stored states: encodes each first, which takes far longer.

        Raises as `rerank_states`; images that cannot be encoded are in the ranking's `failed`.
        """
        states, positions, failed = [], [], {}
        for position, result in enumerate(self._encoder.encode_many(images, outputs=Outputs(state=True))):
            if isinstance(result, PhsError):
                failed[position] = result
            else:
                states.append(result.required("state"))
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
