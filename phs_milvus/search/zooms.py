"""A query as search needs it: encoded for each stage and at each zoom of its focus.

encoding = encode_zooms(encoder, "street.jpg", Box(40, 60, 180, 220), Focus(zoom=(0, 2)))
encoding.embedding          # float32 [E], for stage one: the normalised mean over zooms
encoding.per_zoom           # one Encoding per zoom, each with its query_db_embedding for stage two
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeAlias

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Aim, Outputs
from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Focus
from phs_milvus.pointing.prompts import Prompt

_OUTPUTS = Outputs(head_weights=True)
# Up to this many queries are parallel unary calls, which the server puts before bulk work; more go over a stream.
FEW = 16

Item: TypeAlias = tuple[ImageSource, Sequence[Aim]]


def encode_zooms(encoder: Encoder, image: ImageSource, prompt: Prompt | None, focus: Focus) -> Encoding:
    """Encodes one query for both stages, at each zoom of its focus; raises as `Encoder.encode`.

    Returns:
        with head scores and head weights; `query_db_embedding` where `ann_heads` asks for other heads than heads_on.
    """
    (result,) = encode_zooms_many(encoder, [image], [prompt], focus)
    if isinstance(result, PhsError):
        raise result
    return result


def encode_zooms_many(
    encoder: Encoder, images: Sequence[ImageSource], prompts: Sequence[Prompt | None], focus: Focus
) -> list[Encoding | PhsError]:
    """`encode_zooms` for many queries, in their order; a query that failed gives its error instead of raising it."""
    looks = [used_stages(prompt, focus) for prompt in prompts]
    # Everything about one picture in one request: it is decoded once, and prompts share the work on each crop.
    items = [
        (image, [Aim(prompt, stage) for stages in zooms for stage in stages])
        for image, prompt, zooms in zip(images, prompts, looks, strict=True)
    ]
    results = _together(encoder, items) if len(items) <= FEW else encoder.encode_aims(items, outputs=_OUTPUTS)
    return [
        result if isinstance(result, PhsError) else _whole(result, zooms)
        for result, zooms in zip(results, looks, strict=True)
    ]


def _together(encoder: Encoder, items: Sequence[Item]) -> list[list[Encoding] | PhsError]:
    """Encodes each item by a call of its own, all at the same time."""

    def encode(item: Item) -> list[Encoding] | PhsError:
        image, aims = item
        prompts, focuses = [aim.prompt for aim in aims], [aim.focus for aim in aims]
        try:
            return encoder.encode_prompts(image, prompts, focus=focuses, outputs=_OUTPUTS)
        except PhsError as error:
            return error

    if len(items) <= 1:
        return [encode(item) for item in items]
    with ThreadPoolExecutor(len(items), "phs-encode") as pool:
        return list(pool.map(encode, items))


def _whole(encodings: Sequence[Encoding], zooms: Sequence[tuple[Focus, ...]]) -> Encoding:
    """One query's encodings, of each stage at each zoom, as one."""
    every = iter(encodings)
    return combined([for_both_stages(*islice(every, len(stages))) for stages in zooms])


def for_both_stages(query_db: Encoding, ann: Encoding | None = None) -> Encoding:
    """One encoding of two that differ in the heads they keep; without `ann`, the other unchanged."""
    if ann is None:
        return query_db
    return replace(query_db, embedding=ann.required("embedding"), query_db_embedding=query_db.required("embedding"))


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


def used_zooms(prompt: Prompt | None, focus: Focus) -> tuple[Focus, ...]:
    """The focus at each zoom to encode: only the first without a prompt, where every zoom is the whole image."""
    return focus.per_zoom if prompt is not None else focus.per_zoom[:1]


def used_stages(prompt: Prompt | None, focus: Focus) -> list[tuple[Focus, ...]]:
    """What to encode at each zoom; see `stages`. Without a prompt every head is kept, whatever the focus says."""
    zooms = used_zooms(prompt, focus)
    return [(zoom.stage_two,) if prompt is None else stages(zoom) for zoom in zooms]


def stages(focus: Focus) -> tuple[Focus, ...]:
    """The focus of stage two, and that of stage one where it keeps other heads."""
    return tuple(dict.fromkeys((focus.stage_two, focus.stage_one)))
