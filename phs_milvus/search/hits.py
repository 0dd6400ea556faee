"""Hits with all their scores, and the result of a search, which prints as a table."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from tabulate import tabulate

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.location import LocatedBox, LocateTarget, Location
from phs_milvus.contract.types import Encoding, Float32Array
from phs_milvus.milvus.rows import Candidates
from phs_milvus.search.scores import Score, blended
from phs_milvus.search.sources import PictureSource

DEFAULT_BOXES = LocateTarget.limit


@dataclass(frozen=True)
class Hit:
    """One result. Scores are cosine similarities or means of them, in [-1, 1]; ranks count from 1.

    Attributes:
        id: the row's primary key.
        score: the one that the search ranks by.
        ann_score, ann_rank: of stage one, nearest neighbours in Milvus.
        query_db_score, query_db_rank: of stage two, among all candidates with a state; None where the search stopped
            before it, and for a row without a state, whose score is its ann_score.
        blend_score: the mean of ann_score and query_db_score; None without stage two.
        localized_score: of stage three: the mean of what the hit was ranked by before and of what was found in its
            picture (`Location.score` and `match`); None where its picture was not looked into.
        location: where in its picture the thing is; None where nobody looked, or could.
        location_error: why nobody could.
        fields: the values of the output fields that were asked for.
    """

    id: str | int
    score: float
    ann_score: float
    ann_rank: int
    query_db_score: float | None = None
    query_db_rank: int | None = None
    blend_score: float | None = None
    localized_score: float | None = None
    location: Location | None = None
    location_error: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def boxes(self) -> tuple[LocatedBox, ...]:
        """Where the thing may be, best first, in pixels of the hit's upright image; none where nobody looked."""
        return () if self.location is None else self.location.boxes

    @property
    def rerank_score(self) -> float | None:
        """`query_db_score` under its name in 0.1."""
        return self.query_db_score


class HitLocator(Protocol):
    """Looks into hits' pictures; see `phs_milvus.search.locating`."""

    def located(
        self, hits: Sequence[Hit], images: PictureSource | None, *, boxes: int, threshold: float | None
    ) -> list[Hit]:
        """The hits, in their order, with what was found in their pictures."""
        ...


@dataclass(frozen=True, eq=False)
class SearchResult(Sequence[Hit]):
    """The hits of one query, best first; prints as a table.

    Attributes:
        query: the query's Encoding, with head scores and head weights, and `per_zoom` where the focus has several
            zooms; the first example's where there are several.
        without_state: the number of candidates that have no state yet, and are ranked by their ann_score.
        key: name of the collection's primary key.
        encode_ms, ann_ms, rerank_ms: milliseconds of wall time for each part, divided equally among the queries of one
            call; locate_ms: of this query.
    """

    hits: list[Hit]
    query: Encoding
    encode_ms: float
    ann_ms: float
    rerank_ms: float
    locate_ms: float = 0.0
    without_state: int = 0
    key: str = "id"
    _locator: HitLocator | None = field(default=None, repr=False)

    def locate(
        self, images: PictureSource | None = None, *, boxes: int = DEFAULT_BOXES, threshold: float | None = None
    ) -> SearchResult:
        """Looks into the hits' pictures for what the query points at, of several examples the first; their order stays.

        Args:
            images: where the pictures are: a folder, a URL with {id} in it, or a function of a row's id (see
                `phs_milvus.search.sources.finder`); None: where the collection's rows say, or below the search's
                image_root.
            boxes: at most, in each hit.
            threshold: in (0, 1): higher makes boxes smaller; None: the server's default.

        Returns:
            the same hits with `location` and `boxes`, or with `location_error` where a picture cannot be used.

        Raises:
            InvalidInput: the query came as an Encoding, without its picture; or `images` cannot be used.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        if self._locator is None:
            raise InvalidInput("came as an Encoding, without the picture that locating compares hits with", "query")
        started = time.perf_counter()
        hits = self._locator.located(self.hits, images, boxes=boxes, threshold=threshold)
        return replace(self, hits=hits, locate_ms=1000 * (time.perf_counter() - started))

    def milvus(self) -> list[Any]:
        """The hits as MilvusClient.search returns them for one query: a list of one pymilvus Hits.

        Each hit has the primary key under its own name, "distance" and "entity", the output fields. Its distance is
        `Hit.score`, of which more is better whatever the collection's metric is.
        """
        from phs_milvus.milvus.answers import as_hits  # pymilvus is not needed for anything else here

        hits = self.hits
        return as_hits(self.key, [hit.id for hit in hits], [hit.score for hit in hits], [hit.fields for hit in hits])

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: Any) -> Any:
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per hit: its output fields, its rank, its id, and every score and rank of `Hit`.

        An output field with one of these names is left out.
        """
        return [
            {
                **hit.fields,
                "rank": rank,
                "id": hit.id,
                "score": hit.score,
                "ann_score": hit.ann_score,
                "ann_rank": hit.ann_rank,
                "query_db_score": hit.query_db_score,
                "query_db_rank": hit.query_db_rank,
                "blend_score": hit.blend_score,
                **_where(hit),
            }
            for rank, hit in enumerate(self.hits, start=1)
        ]

    def __str__(self) -> str:
        if not self.hits:
            return "no hits"
        columns = {"rank": "right", "id": "left", "score": "right", "ANN": "right", "ANN rank": "right"}
        rows: list[list[Any]] = [
            [rank, hit.id, f"{hit.score:.4f}", f"{hit.ann_score:.4f}", hit.ann_rank]
            for rank, hit in enumerate(self.hits, start=1)
        ]
        if any(hit.query_db_score is not None for hit in self.hits):
            columns |= {"Query-DB": "right", "Query-DB rank": "right"}
            for row, hit in zip(rows, self.hits, strict=True):
                row += ["", ""] if hit.query_db_score is None else [f"{hit.query_db_score:.4f}", hit.query_db_rank]
        if any(hit.location or hit.location_error for hit in self.hits):
            columns |= {"where": "left"}
            for row, hit in zip(rows, self.hits, strict=True):
                row.append(_best_box(hit))
        return tabulate(rows, list(columns), "plain", disable_numparse=True, colalign=list(columns.values()))


def _best_box(hit: Hit) -> str:
    """For the table: the best box, and how many others there are."""
    if not hit.boxes:
        return "not located" if hit.location_error else ""
    box = ",".join(map(str, hit.boxes[0].region))
    return f"{box} (+{len(hit.boxes) - 1})" if len(hit.boxes) > 1 else box


def _where(hit: Hit) -> dict[str, Any]:
    """What a row says of a hit whose picture was looked into, or should have been."""
    if hit.location_error is not None:
        return {"location_error": hit.location_error}
    if hit.location is None:
        return {}
    boxes = [{"box": list(box.region), "score": round(box.score, 4)} for box in hit.boxes]
    return {"localized_score": hit.localized_score, "boxes": boxes, "peak": list(hit.location.peak)}


def ranked_hits(
    candidates: Candidates,
    ann: Float32Array,
    query_db: Float32Array | None,
    *,
    score: Score,
    limit: int,
    min_score: float | None,
) -> list[Hit]:
    """The best `limit` of K candidates by a named score; of equal ones the candidate that stage one has first.

    Args:
        candidates: in the order of stage one.
        ann, query_db: float32 [K]; query_db is NaN for candidates without a state, which are ranked by `ann`, and None
            where the search stops after stage one, and `score` is then "ann".
        min_score: candidates that score less are left out; None: none is.
    """
    final, blend = ann, None
    if query_db is not None:
        blend = blended(ann, query_db)
        chosen = {"ann": ann, "query_db": query_db, "blend": blend}[score]
        final = np.where(np.isnan(query_db), ann, chosen)
    ranks = _ranks(query_db)
    return [
        Hit(
            id=candidates.ids[index],
            score=float(final[index]),
            ann_score=float(ann[index]),
            ann_rank=int(index) + 1,
            query_db_score=_known(query_db, index),
            query_db_rank=ranks.get(int(index)),
            blend_score=_known(blend, index),
            fields=candidates.fields[index],
        )
        for index in np.argsort(-final, kind="stable")[:limit]
        if min_score is None or final[index] >= min_score
    ]


def _ranks(scores: Float32Array | None) -> dict[int, int]:
    """From a candidate's index to its rank; without those that have no score."""
    if scores is None:
        return {}
    order = [int(index) for index in np.argsort(-scores, kind="stable") if not np.isnan(scores[index])]
    return {index: rank for rank, index in enumerate(order, start=1)}


def _known(scores: Float32Array | None, index: int) -> float | None:
    return None if scores is None or np.isnan(scores[index]) else float(scores[index])


def without(candidates: Candidates, rows: Collection[int], count: int) -> Candidates:
    """The first `count` candidates, those at `rows` left out."""
    kept = [row for row in range(len(candidates)) if row not in rows][:count]
    states = candidates.states
    return replace(
        candidates,
        ids=[candidates.ids[row] for row in kept],
        scores=candidates.scores[kept],
        states=None if states is None else [states[row] for row in kept],
        fields=[candidates.fields[row] for row in kept],
    )
