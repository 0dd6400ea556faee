"""Focused search in two stages: nearest neighbours in Milvus by the focused query, then exact scores from states.

search = FocusedSearch(collection, encoder)
result = search.search("street.jpg", Box(40, 60, 180, 220), limit=10)
print(result)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.pictures import Opened
from phs_milvus.contract import state, telemetry
from phs_milvus.contract.errors import CollectionError, InvalidInput, PhsError, StateError
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Encoding, Float32Array, Focus
from phs_milvus.milvus.collection import MAX_LIMIT, Candidates, FocusedCollection
from phs_milvus.milvus.options import SearchOptions
from phs_milvus.milvus.ranker import ModelRanker, Provider, model_ranker
from phs_milvus.milvus.rows import Id
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.hits import DEFAULT_BOXES, Hit, SearchResult, ranked_hits, without
from phs_milvus.search.locating import QueryLocator, localized
from phs_milvus.search.packed_query import pack_query
from phs_milvus.search.parts import Parts, parts_of
from phs_milvus.search.queries import (
    Examples,
    Pointed,
    Query,
    Question,
    StoredImage,
    digest_of,
    examples_of,
    pictures_of,
    place_of,
    with_files,
)
from phs_milvus.search.sampling import check_states
from phs_milvus.search.scanning import SPARE, ScannedRows, query_db_of, scan
from phs_milvus.search.scores import Score, check_score
from phs_milvus.search.sources import PictureSource
from phs_milvus.search.stages import StageOne, check_scan
from phs_milvus.search.zooms import FEW, encode_zooms_many

DEFAULT_LIMIT = 10
# Stage one returns this many candidates per hit, and at least MIN_CANDIDATES: stage two repairs a wrong order among
# the candidates, but cannot bring back a candidate that stage one missed.
_CANDIDATES_PER_HIT = 10
MIN_CANDIDATES = 200
# Asked of stage one in addition where a query's own picture is left out: it may be there under several ids.
_COPIES = 10


class FocusedSearch:
    """Searches one collection with one encoder.

    Args:
        collection: the collection to search.
        encoder: a client of the embedding server that runs the collection's model.
        image_root: the folder in which `StoredImage` queries find their files, as image_root / id. None: the row's
            "path" field, which `ingest` writes, says where the file is.

    Raises:
        ModelMismatch: the collection was filled by another model than the encoder runs, or at another image size; or
            somebody else fills it, and most states of a sample do not give the embeddings beside them.
        EncoderError: the server could not answer.
    """

    def __init__(
        self, collection: FocusedCollection, encoder: Encoder, *, image_root: str | Path | None = None
    ) -> None:
        collection.check_model(encoder.info)
        if collection.foreign:
            check_states(collection, encoder)
        self._collection = collection
        self._encoder = encoder
        self._image_root = None if image_root is None else Path(image_root)

    def search(
        self,
        image: ImageSource | StoredImage | Sequence[Query | Encoding],
        prompt: Prompt | None = None,
        *,
        unlike: Sequence[Query | Encoding] = (),
        limit: int = DEFAULT_LIMIT,
        candidates: int | None = None,
        filter: str = "",
        output_fields: Sequence[str] = (),
        score: Score = "blend",
        min_score: float | None = None,
        exclude_query: bool = False,
        rerank: bool = True,
        localize: int | None = None,
        images: PictureSource | None = None,
        boxes: int = DEFAULT_BOXES,
        focus: Focus = Focus(),
        stage_one: StageOne = "ann",
        partition_names: Sequence[str] | None = None,
        search_params: Mapping[str, Any] | None = None,
        group_by_field: str | None = None,
        consistency_level: str | None = None,
        timeout: float | None = None,
    ) -> SearchResult:
        """Finds the pictures that contain what the prompt points at.

        Args:
            image: see `Encoder.encode`, or a StoredImage; or several examples as a list of Query, each with its own
                prompt.
            prompt: in pixels of the upright image; None for whole-image search.
            unlike: counter-examples: "like these, not those"; see `Examples`.
            limit: number of hits.
            candidates: number of rows that stage one passes to stage two, from `limit` to 16,384; None: ten times
                `limit`, at least 200. With as many candidates as the collection has rows, the order is that of
                scoring every row.
            filter: a Milvus boolean expression over the rows' fields.
            output_fields: the fields to return with each hit.
            score: what hits are ranked by: "blend", "query_db" or "ann" (phs_milvus.search.scores). "ann" stops after
                stage one.
            min_score: hits that score less are left out, from -1 to 1; None: none is. `phs-milvus eval --preset
                thresholds` shows what a threshold keeps.
            exclude_query: leave rows out whose file is, by its digest, the query's own picture; rows without a digest
                stay.
            rerank: False stops after stage one, whatever `score` says.
            localize: the third stage: so many of the best rows are looked into and ranked by what is found there, with
                boxes around it (phs_milvus.search.locating); twice `limit` is a good number. The rows after them follow
                in their order, with the score they had. None: there is no third stage.
            images, boxes: where the rows' pictures are, and how many boxes to find in each; see `SearchResult.locate`.
                A row whose picture cannot be used keeps its score, and `location_error` says why.
            focus: how to focus on the prompt; PHS as published is Focus.paper() with score="query_db".
            stage_one: "ann" finds the nearest rows in Milvus. "scan" has the server compare the query with every state
                in its file (`phs-milvus export-states`, `phs-server --states`), which misses none; a filter's rows are
                asked of Milvus before. Rows that are new or changed since the export are not seen so:
                `SearchResult.scanned_at` says of when it is. Not for the score "ann", nor with partition_names,
                search_params or group_by_field. The Encoder's timeout must suffice for the scan.
            partition_names, search_params, group_by_field, consistency_level, timeout: as MilvusClient.search takes
                them, for all that is read of Milvus; see `phs_milvus.milvus.options.SearchOptions`. With
                `group_by_field` stage one finds one row for each value of that field, the nearest.

        Raises:
            InvalidInput: an argument cannot be used; `.field` names it: image, prompt, limit, candidates, filter, ...
            MilvusUnavailable: Milvus does not answer, or not within `timeout`.
            StateError: a candidate's stored state is not one of this model; the message names the row. (A row without
                a state is none: it is ranked by its ann_score, and the result counts such rows.)
            CollectionError: the collection is empty, or has no digests by which to exclude the query.
            EncoderError: the server could not answer, or its answer was wrong.
        """
        like: Sequence[Query | Encoding]
        if isinstance(image, (list, tuple)):
            if prompt is not None:
                raise InvalidInput("each example has its own: pass it to its Query", "prompt")
            like = image
        else:
            like = [Query(image, prompt)]  # type: ignore[arg-type]  # no other sequence is an image
        results = self.search_many(
            [Examples(like, unlike)],
            limit=limit,
            candidates=candidates,
            filter=filter,
            output_fields=output_fields,
            score=score,
            min_score=min_score,
            exclude_query=exclude_query,
            rerank=rerank,
            localize=localize,
            images=images,
            boxes=boxes,
            focus=focus,
            stage_one=stage_one,
            partition_names=partition_names,
            search_params=search_params,
            group_by_field=group_by_field,
            consistency_level=consistency_level,
            timeout=timeout,
        )
        return results[0]

    @telemetry.staged("search")
    def search_many(
        self,
        queries: Sequence[Question],
        *,
        limit: int = DEFAULT_LIMIT,
        candidates: int | None = None,
        filter: str = "",
        output_fields: Sequence[str] = (),
        score: Score = "blend",
        min_score: float | None = None,
        exclude_query: bool = False,
        rerank: bool = True,
        localize: int | None = None,
        images: PictureSource | None = None,
        boxes: int = DEFAULT_BOXES,
        focus: Focus = Focus(),
        stage_one: StageOne = "ann",
        partition_names: Sequence[str] | None = None,
        search_params: Mapping[str, Any] | None = None,
        group_by_field: str | None = None,
        consistency_level: str | None = None,
        timeout: float | None = None,
    ) -> list[SearchResult]:
        """`search` for several queries with one Milvus call; returns one result per query, in their order.

        Args:
            queries: each a Query, or Examples where it has several. An Encoding, as `Reranker.query` returns it, is a
                query that is not encoded again; `focus` does not change it.

        The other arguments are those of `search`, and it raises as `search` does. A query that cannot be used fails the
        whole call before Milvus is asked.
        """
        if not queries:
            return []
        check_score(score, min_score)
        if localize is not None and not 1 <= localize <= MAX_LIMIT:
            raise InvalidInput(f"must be 1 to {MAX_LIMIT} or None, got {localize}", "localize")
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"must be 1 to {MAX_LIMIT}, got {limit}", "limit")
        options = SearchOptions(partition_names, search_params, group_by_field, consistency_level, timeout)
        first, asked_focus = max(limit, localize or 0), focus
        if score == "ann" or not rerank:  # what only stage two would need is not encoded
            score, focus = "ann", focus.stage_one
        check_scan(stage_one, score, options)
        if stage_one == "scan" and candidates is None:
            candidates = min(MAX_LIMIT, first + SPARE)
        depth = _stage_one_depth(first, candidates, score)
        started = time.perf_counter()
        parts, own, pointed = self._encode(queries, focus, exclude_query, options)
        encoded = time.perf_counter()
        scanned: Sequence[ScannedRows | None] = [None] * len(parts)
        if stage_one == "scan" and score != "ann":
            found, scanned = self._scanned(parts, score, depth, filter, output_fields, own, options)
        else:
            found = self._candidates(parts, depth, filter, output_fields, own, options, with_states=score != "ann")
        searched = time.perf_counter()
        if not any(len(candidates.ids) for candidates in found):
            self._collection.check_not_empty()
        hits = [
            self._ranked(query, candidates, score, first, None if localize else min_score, rows)
            for query, candidates, rows in zip(parts, found, scanned, strict=True)
        ]
        done = time.perf_counter()
        times = [1000 * span / len(queries) for span in (encoded - started, searched - encoded, done - searched)]
        results = [
            SearchResult(
                best,
                query.first,
                times[0],
                times[1],
                times[2],
                key=self._collection.layout.id,
                without_state=sum(not text for text in candidates.states or []),
                scanned_at=None if rows is None else rows.scanned_at,
                _locator=self._locator(example, asked_focus),
            )
            for query, best, example, candidates, rows in zip(parts, hits, pointed, found, scanned, strict=True)
        ]
        if not localize:
            return results
        return [_third_stage(result, localize, images, boxes, limit, min_score) for result in results]

    def ranker(
        self,
        *questions: Question,
        endpoint: str | None = None,
        provider: Provider = "tei",
        score: Literal["query_db", "blend"] = "blend",
        token: str | None = None,
        credential: str | None = None,
        focus: Focus = Focus(),
    ) -> ModelRanker:
        """For MilvusClient.search and hybrid_search, which then rerank by themselves: see `phs_milvus.web.rerank`.

        Args:
            questions: as `search_many` takes them, one for each vector of the search.
            endpoint: where Milvus, not this program, reaches `phs-milvus rerank-endpoint`: http://host:8766.
            provider: the service that Milvus takes it for: "tei" or "vllm", or "cohere", which alone Milvus Lite has.
            score: what hits are ranked by.
            token: for Milvus Lite, the endpoint's token.
            credential: for a server, the name of the endpoint's token in its milvus.yaml.

        Raises:
            InvalidInput: a question or argument that cannot be used; `.field` names it.
            CollectionError: this Milvus is older than 2.6 and would ignore it, or cannot rerank by the states' field.
            EncoderError: the server could not answer.
        """
        if not questions or score not in ("query_db", "blend"):
            field = "score" if questions else "questions"
            raise InvalidInput("there must be a question, and score must be query_db or blend", field)
        parts, _, _ = self._encode(questions, focus, False, SearchOptions())
        return model_ranker(
            self._collection,
            [pack_query(query.comparison(score), self._encoder.info.fingerprint) for query in parts],
            np.stack([query.ann_embedding for query in parts]),
            provider=provider,
            endpoint=endpoint,
            token=token,
            credential=credential,
        )

    def file_of(self, image: ImageSource | StoredImage) -> ImageSource:
        """The file of a StoredImage; any other image is returned unchanged.

        Raises:
            InvalidInput: there is no such row, its id leads out of `image_root`, or it has no path and there is no
                `image_root`.
            ImageError: it cannot be fetched.
        """
        (found,) = with_files(self._collection, [Query(image)], self._image_root)
        assert isinstance(found, Pointed)
        return found.image

    def pictures_of(self, ids: Sequence[Id]) -> Callable[[Id], ImageSource | None]:
        """A function from each of these ids to its row's picture, with one lookup; None where it is not known.

        The function raises ImageError where a picture is to be fetched and cannot be.
        """
        return pictures_of(self._collection, ids, self._image_root)

    def _locator(self, example: Pointed | Encoding, focus: Focus) -> QueryLocator | None:
        """Looks for what an example points at; None for an Encoding, which does not hold its picture."""
        if isinstance(example, Encoding):
            return None

        return QueryLocator(self._encoder, example.image, example.prompt, focus, self.pictures_of)

    @telemetry.staged("encode")
    def _encode(
        self, questions: Sequence[Question], focus: Focus, with_digests: bool, options: SearchOptions
    ) -> tuple[list[Parts], list[frozenset[str]], list[Pointed | Encoding]]:
        """Each question's parts, the digests of its own pictures where they are wanted, else none, and its first
        example."""
        if with_digests and not self._collection.has_digests:
            raise CollectionError(
                f"collection {self._collection.name!r} has no digests, by which exclude_query knows the query's own "
                "picture: add a VARCHAR field 'digest' that holds each file's sha256, or leave a row out by filter"
            )
        asked = [example for question in questions for example in examples_of(question)]
        level, timeout = options.consistency_level, options.timeout
        examples = with_files(self._collection, asked, self._image_root, consistency_level=level, timeout=timeout)
        if len(examples) <= FEW:
            examples = [self._opened(example, place_of(n, questions)) for n, example in enumerate(examples)]
        encodings = iter(self._encoded(examples, questions, focus))
        digests = iter([digest_of(example) for example in examples] if with_digests else [])
        parts, own, pointed, start = [], [], [], 0
        for question in questions:
            pointed.append(examples[start])
            start += len(examples_of(question))
            some = list(islice(encodings, len(examples_of(question))))
            likes = len(question.like) if isinstance(question, Examples) else 1
            parts.append(parts_of(some[:likes], some[likes:]))
            own.append(frozenset(islice(digests, len(some))))
        return parts, own, pointed

    def _opened(self, example: Pointed | Encoding, place: str) -> Pointed | Encoding:
        """The example with its picture opened: to locate is then to ask for another encoding of a picture that the
        server holds."""
        if isinstance(example, Encoding) or isinstance(example.image, Opened):
            return example
        try:
            return example._replace(image=self._encoder.open(example.image))
        except InvalidInput as error:
            raise _placed(error, place) from error.__cause__

    def _encoded(
        self, examples: Sequence[Pointed | Encoding], questions: Sequence[Question], focus: Focus
    ) -> list[Encoding]:
        new = [example for example in examples if isinstance(example, Pointed)]
        images, prompts = [example.image for example in new], [example.prompt for example in new]
        fresh = iter(encode_zooms_many(self._encoder, images, prompts, focus) if new else [])
        encodings = []
        for number, example in enumerate(examples):
            result = next(fresh) if isinstance(example, Pointed) else example
            if isinstance(result, InvalidInput):
                raise _placed(result, place_of(number, questions))
            if isinstance(result, PhsError):
                raise result
            encodings.append(result)
        return encodings

    @telemetry.staged("milvus", lambda found: [len(candidates.ids) for candidates in found])
    def _candidates(
        self,
        parts: Sequence[Parts],
        depth: int,
        filter: str,
        output_fields: Sequence[str],
        own: Sequence[frozenset[str]],
        options: SearchOptions,
        *,
        with_states: bool,
    ) -> list[Candidates]:
        """Stage one: the nearest `depth` rows to each query, without those that are one of its `own` pictures."""
        most = max(map(len, own))
        field, extra = self._digest_field(most, output_fields)
        found = self._collection.search(
            np.stack([query.ann_embedding for query in parts]),
            min(MAX_LIMIT, depth + _COPIES * most),
            filter=filter,
            output_fields=[*output_fields, *extra],
            with_states=with_states,
            **vars(options),
        )
        if not most:
            return found
        return [self._others(*each, field, depth, drop=bool(extra)) for each in zip(found, own, strict=True)]

    def _scanned(
        self,
        parts: Sequence[Parts],
        score: Literal["query_db", "blend"],
        depth: int,
        filter: str,
        output_fields: Sequence[str],
        own: Sequence[frozenset[str]],
        options: SearchOptions,
    ) -> tuple[list[Candidates], list[ScannedRows]]:
        """`_candidates` of every row in the server's file, and what was found there of each."""
        most = max(map(len, own))
        field, extra = self._digest_field(most, output_fields)
        found = scan(
            self._collection,
            self._encoder,
            parts,
            score,
            min(MAX_LIMIT, depth + _COPIES * most),
            filter=filter,
            output_fields=[*output_fields, *extra],
            options=options,
        )
        rows = [scanned.candidates for scanned in found]
        if most:
            rows = [self._others(*each, field, depth, drop=bool(extra)) for each in zip(rows, own, strict=True)]
        return rows, found

    def _digest_field(self, most: int, output_fields: Sequence[str]) -> tuple[str | None, list[str]]:
        """The rows' field that holds the digest, if one is needed and it is there; and what to ask for beside
        `output_fields` to get it."""
        field = self._collection.layout.digest if most and self._collection.side is None else None
        return field, [field] if field is not None and not {field, "*"} & set(output_fields) else []

    def _others(
        self, candidates: Candidates, digests: frozenset[str], field: str | None, depth: int, *, drop: bool
    ) -> Candidates:
        """The first `depth` candidates whose picture has none of these digests.

        Args:
            field: the rows' field that holds the digest; None: the side collection holds it.
            drop: whether to take the field away from the rows.
        """
        if field is None:
            stored = self._collection.digests(candidates.ids)
            own = {row for row, key in enumerate(candidates.ids) if stored.get(key) in digests}
        else:
            own = {row for row, fields in enumerate(candidates.fields) if fields.get(field) in digests}
        if drop:
            for fields in candidates.fields:
                fields.pop(field, None)  # type: ignore[arg-type]  # there is a field where it was asked for
        return without(candidates, own, depth)

    @telemetry.staged("rerank")
    def _query_db(self, query: Parts, candidates: Candidates) -> Float32Array:
        """Stage two's scores, float32 [K]; NaN for rows without a state."""
        packed = candidates.states or []
        rows = [row for row, text in enumerate(packed) if text]
        scores = np.full(len(packed), np.nan, np.float32)
        if not rows:
            return scores
        try:
            texts, ids = [packed[row] for row in rows], [candidates.ids[row] for row in rows]
            states = state.unpack_stored(texts, self._encoder.info.hidden_size, ids)
        except StateError as error:
            raise StateError(f"collection '{self._collection.name}', {error}") from None
        scores[rows] = query.query_db_scores(self._encoder, states)
        return scores

    def _ranked(
        self,
        query: Parts,
        candidates: Candidates,
        score: Score,
        limit: int,
        min_score: float | None,
        scanned: ScannedRows | None,
    ) -> list[Hit]:
        """Stage two, unless the score is that of stage one, or a scan has its scores already."""
        if not candidates.ids:
            return []
        ann = candidates.scores * np.float32(np.linalg.norm(query.ann_embedding))
        if scanned is not None:
            query_db: Float32Array | None = query_db_of(scanned, candidates)
        else:
            query_db = None if score == "ann" else self._query_db(query, candidates)
        return ranked_hits(candidates, ann, query_db, score=score, limit=limit, min_score=min_score)


def _placed(error: InvalidInput, place: str) -> InvalidInput:
    """The error with where its example is, if there are several."""
    return type(error)(f"{place}: {error}", error.field) if place else error


def _third_stage(
    result: SearchResult,
    localize: int,
    images: PictureSource | None,
    boxes: int,
    limit: int,
    min_score: float | None,
) -> SearchResult:
    """The best `localize` hits looked into and ranked by it, then the others as they were."""
    located = replace(result, hits=result.hits[:localize]).locate(images, boxes=boxes)
    hits = [*localized(located.hits), *result.hits[localize:]][:limit]
    return replace(located, hits=[hit for hit in hits if min_score is None or hit.score >= min_score])


def _stage_one_depth(limit: int, candidates: int | None, score: Score) -> int:
    """The number of rows to ask of Milvus."""
    if score == "ann":
        return limit
    if candidates is None:
        return min(MAX_LIMIT, max(MIN_CANDIDATES, _CANDIDATES_PER_HIT * limit))
    if not limit <= candidates <= MAX_LIMIT:
        raise InvalidInput(
            f"must be {limit} (limit, or localize if that is more) to {MAX_LIMIT}, got {candidates}", "candidates"
        )
    return candidates
