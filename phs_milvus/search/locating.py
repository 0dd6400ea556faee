"""Where in each hit the thing is that the query looks at, and the third stage of a search that ranks by it.

result = search.search("street.jpg", Box(40, 60, 180, 220)).locate("photos/")
result[0].boxes                                     # in pixels of the hit's upright image, best first
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.types import Focus
from phs_milvus.milvus.rows import Id
from phs_milvus.pointing.prompts import Prompt

DEFAULT_BOXES = 5


def target_of(
    encoder: Encoder,
    image: ImageSource,
    prompt: Prompt | None,
    focus: Focus,
    *,
    limit: int = DEFAULT_BOXES,
    threshold: float | None = None,
) -> LocateTarget:
    """What to look for in hits: one Encode of the query, which costs milliseconds where the server holds the picture.

    The whole picture is looked at, whatever the focus zooms to: so are the hits.

    Args:
        image, prompt, focus: as for `FocusedSearch.search`.
        limit, threshold: see `LocateTarget`.

    Raises:
        As `Encoder.encode`.
    """
    whole = replace(focus, zoom=0.0)
    focuses = [whole, replace(whole, heads_on="all")]
    outputs = Outputs(head_weights=True, region_feature=True)
    kept, every = encoder.encode_prompts(image, [prompt, prompt], focus=focuses, outputs=outputs)
    return LocateTarget(
        embedding=kept.required("embedding"),
        head_weights=kept.required("head_weights"),
        region_feature=kept.region_feature,
        all_heads_embedding=every.required("embedding"),
        limit=limit,
        threshold=threshold,
    )


def locations(
    encoder: Encoder, target: LocateTarget, ids: Sequence[Id], find: Callable[[Id], ImageSource]
) -> Iterator[Location | PhsError]:
    """Where the thing is in the picture of each row, or why that cannot be said, in the order of `ids`.

    Args:
        find: see `phs_milvus.search.sources.finder`; called for one row after the other, as the server is ready.
    """
    return encoder.locate(target, [partial(find, row_id) for row_id in ids])
