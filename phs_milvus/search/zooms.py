"""A query at several zooms: it is encoded at each, stage one averages the embeddings, and reranking the scores.

encoding = encode_zooms(encoder, "street.jpg", Box(40, 60, 180, 220), Focus(attention_shift=1, zoom=(0, 2)))
encoding.embedding          # float32 [E], the normalised mean
encoding.per_zoom           # one Encoding per zoom
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus
from phs_milvus.pointing.prompts import Prompt

_OUTPUTS = Outputs(head_weights=True)
# Up to this many encodings are parallel unary calls, which the server puts before bulk work; more go over a stream.
_FEW = 16


class View(NamedTuple):
    """One encoding: an image, a prompt in it, and a focus with one zoom."""

    image: ImageSource
    prompt: Prompt | None
    focus: Focus


def encode_zooms(encoder: Encoder, image: ImageSource, prompt: Prompt | None, focus: Focus) -> Encoding:
    """Encodes one query with head scores and head weights at each zoom of its focus; raises as `Encoder.encode`."""
    (result,) = encode_zooms_many(encoder, [image], [prompt], focus)
    if isinstance(result, PhsError):
        raise result
    return result


def encode_zooms_many(
    encoder: Encoder, images: Sequence[ImageSource], prompts: Sequence[Prompt | None], focus: Focus
) -> list[Encoding | PhsError]:
    """`encode_zooms` for many queries, in their order; a query that failed gives its error instead of raising it."""
    views = [
        View(image, prompt, single)
        for image, prompt in zip(images, prompts, strict=True)
        for single in used_zooms(prompt, focus)
    ]
    parts = iter(_together(encoder, views) if len(views) <= _FEW else _streamed(encoder, views))
    return [_whole(list(islice(parts, len(used_zooms(prompt, focus))))) for prompt in prompts]


def _together(encoder: Encoder, views: Sequence[View]) -> list[Encoding | PhsError]:
    """Encodes each view by a call of its own, all at the same time."""

    def encode(view: View) -> Encoding | PhsError:
        try:
            return encoder.encode(view.image, view.prompt, focus=view.focus, outputs=_OUTPUTS)
        except PhsError as error:
            return error

    if len(views) <= 1:
        return [encode(view) for view in views]
    with ThreadPoolExecutor(len(views), "phs-encode") as pool:
        return list(pool.map(encode, views))


def _streamed(encoder: Encoder, views: Sequence[View]) -> list[Encoding | PhsError]:
    """One bulk encode for each zoom."""
    results: dict[int, Encoding | PhsError] = {}
    for focus in {view.focus for view in views}:
        chosen = [index for index, view in enumerate(views) if view.focus == focus]
        images, prompts = [views[index].image for index in chosen], [views[index].prompt for index in chosen]
        results |= zip(chosen, encoder.encode_many(images, prompts, focus=focus, outputs=_OUTPUTS), strict=True)
    return [results[index] for index in range(len(views))]


def _whole(parts: Sequence[Encoding | PhsError]) -> Encoding | PhsError:
    """The parts of one query combined, or the first error among them."""
    encodings = []
    for part in parts:
        if isinstance(part, PhsError):
            return part
        encodings.append(part)
    return combined(encodings)


def combined(encodings: Sequence[Encoding]) -> Encoding:
    """Combines the encodings of one query at each zoom; a single one is returned unchanged.

    Returns:
        the first encoding with `embedding` replaced by the normalised mean, float32 [E], and all of them in `per_zoom`.
    """
    if len(encodings) == 1:
        return encodings[0]
    mean = np.mean([encoding.required("embedding") for encoding in encodings], axis=0)
    length = float(np.linalg.norm(mean))
    return replace(encodings[0], embedding=(mean / (length or 1.0)).astype(np.float32), per_zoom=tuple(encodings))


def query_db_scores(encoder: Encoder, query: Encoding, states: Float16Array) -> Float32Array:
    """Exact Query-DB scores of float16 [K, 2, D] states: float32 [K], the mean over the query's zooms.

    Raises:
        InvalidInput: the query has no head weights, or the states do not fit the model.
        EncoderError: the server could not answer, or its answer was wrong.
    """
    parts = query.per_zoom or (query,)
    embeddings = np.stack([part.required("embedding") for part in parts])
    weights = np.stack([part.required("head_weights") for part in parts])
    scores: Float32Array = encoder.rerank(embeddings, weights, states).mean(axis=0)
    return scores


def used_zooms(prompt: Prompt | None, focus: Focus) -> tuple[Focus, ...]:
    """The focus at each zoom to encode: only the first without a prompt, where every zoom is the whole image."""
    return focus.per_zoom if prompt is not None else focus.per_zoom[:1]
