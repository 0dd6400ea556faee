"""Where in each hit the thing is that the query looks at, and the third stage of a search, which ranks by it.

result = search.search("street.jpg", Box(40, 60, 180, 220)).locate("photos/")
result[0].boxes                                     # in pixels of the hit's upright image, best first

search.search("street.jpg", Box(40, 60, 180, 220), localize=20, images="photos/")       # ranked by it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import telemetry
from phs_milvus.contract.errors import PhsError, shown
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.types import Focus
from phs_milvus.milvus.rows import Id
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.hits import DEFAULT_BOXES, Hit
from phs_milvus.search.sources import PictureSource, finder


def target_of(
    encoder: Encoder,
    image: ImageSource,
    prompt: Prompt | None,
    focus: Focus,
    *,
    boxes: int = DEFAULT_BOXES,
    threshold: float | None = None,
) -> LocateTarget:
    """What to look for in hits: one Encode of the query, which costs milliseconds for a Picture that the server holds.

    The whole picture is looked at, whatever the focus zooms to: so are the hits.

    Args:
        image, prompt, focus: as for `FocusedSearch.search`.
        boxes, threshold: `LocateTarget.limit` and `threshold`.

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
        limit=boxes,
        threshold=threshold,
    )


@dataclass(frozen=True, eq=False)
class QueryLocator:
    """Looks for one query's thing in the pictures of hits.

    Attributes:
        image, prompt, focus: the query.
        own_pictures: given the rows' ids, finds their pictures if nothing else is said where they are; None where it
            is not known.
    """

    encoder: Encoder
    image: ImageSource
    prompt: Prompt | None
    focus: Focus
    own_pictures: Callable[[Sequence[Id]], Callable[[Id], ImageSource | None]]

    @telemetry.staged("locate")
    def located(
        self,
        hits: Sequence[Hit],
        images: PictureSource | None,
        *,
        boxes: int = DEFAULT_BOXES,
        threshold: float | None = None,
    ) -> list[Hit]:
        """The hits, in their order, with what was found in their pictures; raises as `SearchResult.locate`."""
        find = finder(self.own_pictures([hit.id for hit in hits]) if images is None else images)
        target = target_of(self.encoder, self.image, self.prompt, self.focus, boxes=boxes, threshold=threshold)
        found = self.encoder.locate(target, [partial(find, hit.id) for hit in hits])
        has_feature = target.region_feature is not None
        return [_with(hit, location, has_feature) for hit, location in zip(hits, found, strict=True)]


def localized(hits: Sequence[Hit]) -> list[Hit]:
    """Stage three: located hits ranked by their localized score; those that could not be keep the score they had."""
    scored = [hit if hit.localized_score is None else replace(hit, score=hit.localized_score) for hit in hits]
    return sorted(scored, key=lambda hit: -hit.score)


def localized_score(score: float, location: Location, has_feature: bool) -> float:
    """The mean of a hit's score so far and of what was found in its picture."""
    parts = [score, location.score, *([location.match] if has_feature else [])]
    return sum(parts) / len(parts)


def _with(hit: Hit, found: Location | PhsError, has_feature: bool) -> Hit:
    if isinstance(found, PhsError):
        return replace(hit, location=None, location_error=shown(found))
    score = hit.localized_score  # of an earlier look, which made it of the same parts
    if score is None:
        score = localized_score(hit.score, found, has_feature)
    return replace(hit, location=found, localized_score=score, location_error=None)
