"""Focused search in two stages: nearest neighbours in Milvus by the focused query, then exact Query-DB reranking.

search = FocusedSearch(collection, encoder)
result = search.search("street.jpg", Box(40, 60, 180, 220), limit=10)
print(result)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state
from phs_milvus.contract.errors import InvalidInput, PhsError, StateError, shown
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Focus
from phs_milvus.milvus.collection import MAX_LIMIT, Candidates, FocusedCollection
from phs_milvus.milvus.rows import Id
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.pictures import below
from phs_milvus.search.rerank import Reranker
from phs_milvus.search.zooms import encode_zooms_many

DEFAULT_LIMIT = 10
# Stage one returns this many candidates per hit, and at least MIN_CANDIDATES: reranking repairs a wrong order among
# the candidates, but cannot bring back a candidate that stage one missed.
_CANDIDATES_PER_HIT = 10
MIN_CANDIDATES = 200


@dataclass(frozen=True)
class StoredImage:
    """A query image that is a row of the collection, given by its id; this machine must be able to read its file."""

    id: Id


@dataclass(frozen=True)
class Query:
    """One of many queries: an image, and the prompt that says what to look for in it."""

    image: ImageSource | StoredImage
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        id: the row's primary key.
        score: cosine similarity in [-1, 1]: the rerank score, or the ANN score where there was no reranking.
        ann_score, ann_rank: of stage one; ranks count from 1.
        rerank_score, rerank_rank: of stage two; None without reranking.
        fields: the values of the output fields that were asked for.
    """

    id: str | int
    score: float
    ann_score: float
    ann_rank: int
    rerank_score: float | None = None
    rerank_rank: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SearchResult(Sequence[Hit]):
    """The hits of one query, best first; prints as a table.

    Attributes:
        query: the query's Encoding, with head scores and head weights, and `per_zoom` where the focus has several
            zooms.
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
        """One flat dict per hit: its output fields, its rank, its id, and both stages' scores and ranks.

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
                "rerank_score": hit.rerank_score,
                "rerank_rank": hit.rerank_rank,
            }
            for rank, hit in enumerate(self.hits, start=1)
        ]

    def __str__(self) -> str:
        if not self.hits:
            return "no hits"
        rows = [
            (rank, hit.id, f"{hit.score:.4f}", f"{hit.ann_score:.4f}", hit.ann_rank)
            for rank, hit in enumerate(self.hits, start=1)
        ]
        columns = {"rank": "right", "id": "left", "score": "right", "ANN": "right", "ANN rank": "right"}
        return tabulate(rows, list(columns), "plain", disable_numparse=True, colalign=list(columns.values()))


class FocusedSearch:
    """Searches one collection with one encoder.

    Args:
        collection: the collection to search.
        encoder: a client of the embedding server that runs the collection's model.
        image_root: the folder in which `StoredImage` queries find their files, as image_root / id. None: the row's
            "path" field, which `ingest` writes, says where the file is.

    Raises:
        ModelMismatch: the collection was filled by another model than the encoder runs, or at another image size.
        EncoderError: the server could not answer.
    """

    def __init__(
        self, collection: FocusedCollection, encoder: Encoder, *, image_root: str | Path | None = None
    ) -> None:
        collection.check_model(encoder.info)
        self._collection = collection
        self._encoder = encoder
        self._reranker = Reranker(encoder)
        self._image_root = None if image_root is None else Path(image_root)

    def search(
        self,
        image: ImageSource | StoredImage,
        prompt: Prompt | None = None,
        *,
        limit: int = DEFAULT_LIMIT,
        candidates: int | None = None,
        filter: str = "",
        output_fields: Sequence[str] = (),
        rerank: bool = True,
        focus: Focus = Focus(),
    ) -> SearchResult:
        """Finds the pictures that contain what the prompt points at.

        Args:
            image: see `Encoder.encode`, or a StoredImage.
            prompt: in pixels of the upright image; None for whole-image search.
            limit: number of hits.
            candidates: number of rows that stage one passes to stage two, from `limit` to 16,384; None: ten times
                `limit`, at least 200. With as many candidates as the collection has rows, the order is that of
                exhaustive Query-DB PHS.
            filter: a Milvus boolean expression over the rows' fields.
            output_fields: the fields to return with each hit.
            rerank: False stops after stage one (Query-Only PHS).
            focus: how to focus on the prompt.

        Raises:
            InvalidInput: an argument cannot be used; `.field` names it: image, prompt, limit, candidates, filter, ...
            StateError: a candidate's stored state is not one of this model; the message names the row.
            CollectionError: the collection is empty.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        results = self.search_many(
            [Query(image, prompt)],
            limit=limit,
            candidates=candidates,
            filter=filter,
            output_fields=output_fields,
            rerank=rerank,
            focus=focus,
        )
        return results[0]

    def search_many(
        self,
        queries: Sequence[Query | Encoding],
        *,
        limit: int = DEFAULT_LIMIT,
        candidates: int | None = None,
        filter: str = "",
        output_fields: Sequence[str] = (),
        rerank: bool = True,
        focus: Focus = Focus(),
    ) -> list[SearchResult]:
        """`search` for several queries with one Milvus call; returns one result per query, in their order.

        An Encoding, as `Reranker.query` returns it, is a query that is not encoded again; `focus` does not change it.

        Raises as `search`. A query that cannot be used fails the whole call before Milvus is asked.
        """
        if not queries:
            return []
        depth = _stage_one_depth(limit, candidates, rerank)
        started = time.perf_counter()
        encodings = self._encode(queries, focus)
        encoded = time.perf_counter()
        found = self._collection.search(
            np.stack([encoding.required("embedding") for encoding in encodings]),
            depth,
            filter=filter,
            output_fields=output_fields,
            with_states=rerank,
        )
        searched = time.perf_counter()
        if not any(len(candidates.ids) for candidates in found):
            self._collection.check_not_empty()
        ranked = [
            self._reranked(encoding, candidates, limit) if rerank else _ann_hits(candidates)[:limit]
            for encoding, candidates in zip(encodings, found, strict=True)
        ]
        done = time.perf_counter()
        share = 1000 / len(queries)
        return [
            SearchResult(
                hits,
                encoding,
                (encoded - started) * share,
                (searched - encoded) * share,
                (done - searched) * share,
            )
            for hits, encoding in zip(ranked, encodings, strict=True)
        ]

    def _encode(self, queries: Sequence[Query | Encoding], focus: Focus) -> list[Encoding]:
        results: dict[int, Encoding | PhsError] = {
            position: query for position, query in enumerate(queries) if isinstance(query, Encoding)
        }
        new = {position: query for position, query in enumerate(queries) if isinstance(query, Query)}
        if new:
            images = self._located([query.image for query in new.values()])
            prompts = [query.prompt for query in new.values()]
            results |= zip(new, encode_zooms_many(self._encoder, images, prompts, focus), strict=True)
        encodings = []
        for position in range(len(queries)):
            result = results[position]
            if isinstance(result, InvalidInput) and len(queries) > 1:
                raise type(result)(f"query {position}: {result}", result.field)
            if isinstance(result, PhsError):
                raise result
            encodings.append(result)
        return encodings

    def locate(self, image: ImageSource | StoredImage) -> ImageSource:
        """The file of a StoredImage; any other image is returned unchanged.

        Raises:
            InvalidInput: there is no such row, its id leads out of `image_root`, or it has no path and there is no
                `image_root`.
        """
        return self._located([image])[0]

    def _located(self, images: Sequence[ImageSource | StoredImage]) -> list[ImageSource]:
        """`locate` for many with one lookup."""
        layout = self._collection.layout
        ids = list(dict.fromkeys(image.id for image in images if isinstance(image, StoredImage)))
        has_path = self._image_root is None and (layout.dynamic or "path" in layout.others)
        # The rows are looked up under image_root too, so that an invented id is an error there as well.
        rows = self._collection.get(ids, output_fields=["path"] if has_path else []) if ids else []
        found = {row[layout.id]: row for row in rows}
        return [self._file_of(image.id, found) if isinstance(image, StoredImage) else image for image in images]

    def _file_of(self, row_id: Id, rows: Mapping[Id, dict[str, Any]]) -> ImageSource:
        if row_id not in rows:
            raise InvalidInput(f"no row with id {shown(row_id)!r} in collection '{self._collection.name}'", "image")
        if self._image_root is not None:
            if (file := below(self._image_root, str(row_id))) is None:
                raise InvalidInput(f"row {shown(row_id)!r} leads out of image_root, {self._image_root}", "image")
            return file
        path: str | None = rows[row_id].get("path")
        if not path:
            raise InvalidInput(
                f"row {shown(row_id)!r} does not say where its file is; pass image_root to FocusedSearch", "image"
            )
        return path

    def _reranked(self, query: Encoding, candidates: Candidates, limit: int) -> list[Hit]:
        hits = _ann_hits(candidates)
        if not hits:
            return []
        try:
            states = state.unpack(candidates.states or [], self._encoder.info.hidden_size, candidates.ids)
        except StateError as error:
            raise StateError(f"collection '{self._collection.name}', {error}") from None
        ranking = self._reranker.rerank_states(query, states, top_k=limit)
        return [
            replace(hits[index], score=float(score), rerank_score=float(score), rerank_rank=rank)
            for rank, (index, score) in enumerate(zip(ranking.indices, ranking.scores, strict=True), start=1)
        ]


def _stage_one_depth(limit: int, candidates: int | None, rerank: bool) -> int:
    """The number of rows to ask of Milvus."""
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidInput(f"must be 1 to {MAX_LIMIT}, got {limit}", "limit")
    if not rerank:
        return limit
    if candidates is None:
        return min(MAX_LIMIT, max(MIN_CANDIDATES, _CANDIDATES_PER_HIT * limit))
    if not limit <= candidates <= MAX_LIMIT:
        raise InvalidInput(f"must be {limit} (the limit) to {MAX_LIMIT}, got {candidates}", "candidates")
    return candidates


def _ann_hits(candidates: Candidates) -> list[Hit]:
    """Stage one's order as hits."""
    return [
        Hit(id=row_id, score=float(score), ann_score=float(score), ann_rank=rank, fields=fields)
        for rank, (row_id, score, fields) in enumerate(
            zip(candidates.ids, candidates.scores, candidates.fields, strict=True), start=1
        )
    ]
