"""What candidates are compared with: a query at several zooms, or of several examples, has several parts.

Each score of a candidate is the sum of its scores against the parts, weighted by their shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.types import Encoding, Float32Array, States

# What counter-examples weigh against examples (benchmarks/quality, "Several examples").
UNLIKE_WEIGHT = 0.5


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a state's score is computed from, and nothing else.

    A score is the sum over P parts of share x cosine(embedding, the state read out with the part's head weights).

    Attributes:
        embeddings: float32 [P, E].
        head_weights: float32 [P, H].
        shares: float32 [P].
    """

    embeddings: Float32Array
    head_weights: Float32Array
    shares: Float32Array

    def scores(self, encoder: Encoder, states: States, *, timeout: float | None = None) -> Float32Array:
        """The scores of K states, float16 [K, 2, D] or Int8States: float32 [K]. Raises as `Encoder.rerank`."""
        every = encoder.rerank(self.embeddings, self.head_weights, states, timeout=timeout)
        scores: Float32Array = self.shares @ every
        return scores


@dataclass(frozen=True, eq=False)
class Parts:
    """A query as candidates are compared with it.

    Attributes:
        first: the first example's encoding, its zooms combined.
        encodings: P encodings, each of one zoom of one example.
        shares: float32 [P], what each part weighs in a score. Those of examples sum to 1; those of counter-examples
            are negative.
    """

    first: Encoding
    encodings: Sequence[Encoding]
    shares: Float32Array

    @property
    def ann_embedding(self) -> Float32Array:
        """float32 [E]: its dot product with a row's embedding is the "ann" score. Of norm 1 if there is one part."""
        embeddings = np.stack([encoding.required("embedding") for encoding in self.encodings])
        embedding: Float32Array = self.shares @ embeddings
        return embedding

    def query_db_scores(self, encoder: Encoder, states: States) -> Float32Array:
        """The "query_db" scores of K states: float32 [K].

        Args:
            states: float16 [K, 2, D] or Int8States.

        Raises:
            InvalidInput: an encoding has no head weights, or the states do not fit the model.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        return self.comparison("query_db").scores(encoder, states)

    def comparison(self, score: Literal["query_db", "blend"]) -> Comparison:
        """What gives this score of a state.

        In "blend" the "ann" score is computed from the state too: read out with every head, it is the row's embedding.

        Raises:
            InvalidInput: an encoding has no head weights.
        """
        weights = np.stack([encoding.required("head_weights") for encoding in self.encodings])
        embeddings = np.stack([_query_db_embedding(encoding) for encoding in self.encodings])
        query_db = Comparison(embeddings, weights, self.shares)
        ann = self.ann_embedding
        length = np.float32(np.linalg.norm(ann))
        if score == "query_db" or not length:
            return query_db
        return Comparison(
            np.vstack([embeddings, ann / length]),
            np.vstack([weights, np.ones_like(weights[0])]),
            np.append(self.shares, length) * np.float32(0.5),
        )


def parts_of(like: Sequence[Encoding], unlike: Sequence[Encoding] = ()) -> Parts:
    """The parts of examples and counter-examples; each of them counts the same, and each of its zooms."""
    encodings: list[Encoding] = []
    shares: list[float] = []
    for group, weight in ((like, 1.0), (unlike, -UNLIKE_WEIGHT)):
        for example in group:
            zooms = example.per_zoom or (example,)
            encodings += zooms
            shares += [weight / len(group) / len(zooms)] * len(zooms)
    return Parts(like[0], encodings, np.array(shares, np.float32))


def _query_db_embedding(encoding: Encoding) -> Float32Array:
    return encoding.required("embedding") if encoding.query_db_embedding is None else encoding.query_db_embedding
