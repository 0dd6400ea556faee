"""Hits with all their scores, and the result of a search, which prints as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from tabulate import tabulate

from phs_milvus.contract.types import Encoding, Float32Array
from phs_milvus.milvus.rows import Candidates
from phs_milvus.search.scores import Score, blended


@dataclass(frozen=True)
class Hit:
    """One result. Scores are cosine similarities or means of them, in [-1, 1]; ranks count from 1.

    Attributes:
        id: the row's primary key.
        score: the one that the search ranks by.
        ann_score, ann_rank: of stage one, nearest neighbours in Milvus.
        query_db_score, query_db_rank: of stage two, among all candidates; None where the search stopped before it.
        blend_score: the mean of ann_score and query_db_score; None without stage two.
        fields: the values of the output fields that were asked for.
    """

    id: str | int
    score: float
    ann_score: float
    ann_rank: int
    query_db_score: float | None = None
    query_db_rank: int | None = None
    blend_score: float | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def rerank_score(self) -> float | None:
        """`query_db_score` under its name in 0.1."""
        return self.query_db_score


@dataclass(frozen=True, eq=False)
class SearchResult(Sequence[Hit]):
    """The hits of one query, best first; prints as a table.

    Attributes:
        query: the query's Encoding, with head scores and head weights, and `per_zoom` where the focus has several
            zooms; the first example's where there are several.
        encode_ms, ann_ms, rerank_ms: milliseconds of wall time for each part, divided equally among the queries of
            one call.
    """

    hits: list[Hit]
    query: Encoding
    encode_ms: float
    ann_ms: float
    rerank_ms: float

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
        if self.hits[0].query_db_score is not None:
            columns |= {"Query-DB": "right", "Query-DB rank": "right"}
            for row, hit in zip(rows, self.hits, strict=True):
                row += [f"{hit.query_db_score:.4f}", hit.query_db_rank]
        return tabulate(rows, list(columns), "plain", disable_numparse=True, colalign=list(columns.values()))


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
        ann, query_db: float32 [K]; query_db is None where the search stops after stage one, and `score` is then "ann".
        min_score: candidates that score less are left out; None: none is.
    """
    final, blend, ranks = ann, None, None
    if query_db is not None:
        blend = blended(ann, query_db)
        final = {"ann": ann, "query_db": query_db, "blend": blend}[score]
        ranks = np.empty(len(query_db), np.int64)
        ranks[np.argsort(-query_db, kind="stable")] = np.arange(1, len(query_db) + 1)
    return [
        Hit(
            id=candidates.ids[index],
            score=float(final[index]),
            ann_score=float(ann[index]),
            ann_rank=int(index) + 1,
            query_db_score=None if query_db is None else float(query_db[index]),
            query_db_rank=None if ranks is None else int(ranks[index]),
            blend_score=None if blend is None else float(blend[index]),
            fields=candidates.fields[index],
        )
        for index in np.argsort(-final, kind="stable")[:limit]
        if min_score is None or final[index] >= min_score
    ]


def without(candidates: Candidates, name: str, values: frozenset[str], count: int, *, keep_field: bool) -> Candidates:
    """The first `count` candidates whose field of this name has none of the values.

    Args:
        keep_field: whether the field stays among those of the hits.
    """
    kept = [row for row, fields in enumerate(candidates.fields) if fields.get(name) not in values][:count]
    fields = [candidates.fields[row] for row in kept]
    if not keep_field:
        fields = [{key: value for key, value in row.items() if key != name} for row in fields]
    states = candidates.states
    return replace(
        candidates,
        ids=[candidates.ids[row] for row in kept],
        scores=candidates.scores[kept],
        states=None if states is None else [states[row] for row in kept],
        fields=fields,
    )
