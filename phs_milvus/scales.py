"""A query at several scales: encoded once for each, its embeddings averaged in stage one, its scores in the reranking.

encoding = encode_scales(encoder, "street.jpg", Box(40, 60, 180, 220), Focus(roi=1, zoom=(0, 2)))
encoding.embedding          # float32 [E], the normalised mean
encoding.scales             # one Encoding per scale
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from phs_milvus.calls import Outputs
from phs_milvus.client import Encoder
from phs_milvus.errors import InvalidInput, PhsError
from phs_milvus.images import ImageSource
from phs_milvus.prompts import Prompt
from phs_milvus.types import Encoding, Float16Array, Float32Array, Focus

_OUTPUTS = Outputs(heads=True)


def encode_scales(encoder: Encoder, image: ImageSource, prompt: Prompt | None, focus: Focus) -> Encoding:
    """Encodes one query, with head scores and weights, at each scale of its focus; raises as `Encoder.encode`."""
    scales = used_scales(prompt, focus)
    return combined([encoder.encode(image, prompt, focus=scale, outputs=_OUTPUTS) for scale in scales])


def encode_scales_many(
    encoder: Encoder, images: Sequence[ImageSource], prompts: Sequence[Prompt | None], focus: Focus
) -> list[Encoding | PhsError]:
    """`encode_scales` for many queries; one that failed is its error."""
    passes = [list(encoder.encode_many(images, prompts, focus=scale, outputs=_OUTPUTS)) for scale in focus.scales]
    results: list[Encoding | PhsError] = []
    for parts in zip(*passes, strict=True):
        encodings = [part for part in parts if isinstance(part, Encoding)]
        failed = [part for part in parts if isinstance(part, PhsError)]
        results.append(failed[0] if failed else combined(encodings))
    return results


def combined(encodings: Sequence[Encoding]) -> Encoding:
    """The encodings of one query at each scale as one; a single one is returned as it is."""
    if len(encodings) == 1:
        return encodings[0]
    mean = np.mean([encoding.embedding for encoding in encodings if encoding.embedding is not None], axis=0)
    length = float(np.linalg.norm(mean))
    return replace(encodings[0], embedding=(mean / (length or 1.0)).astype(np.float32), scales=tuple(encodings))


def query_db_scores(encoder: Encoder, query: Encoding, states: Float16Array) -> Float32Array:
    """float32 [K] exact Query-DB scores of states [K, 2, D], the mean over the query's scales.

    Raises:
        InvalidInput: a query without head weights.
    """
    parts = query.scales or (query,)
    embeddings = [part.embedding for part in parts if part.embedding is not None]
    weights = [part.head_weights for part in parts if part.head_weights is not None]
    if not len(embeddings) == len(weights) == len(parts):
        raise InvalidInput("has no head weights; encode it with Outputs(heads=True) or Reranker.query", "query")
    return encoder.rerank(np.stack(embeddings), np.stack(weights), states).mean(axis=0)


def used_scales(prompt: Prompt | None, focus: Focus) -> tuple[Focus, ...]:
    """The focus at each scale that is encoded: without a prompt every scale is the whole image, so one will do."""
    return focus.scales if prompt is not None else focus.scales[:1]
