"""Stage one without nearest neighbours: the server compares the query with every state in a file.

Milvus says which rows a filter takes, before, and what the best rows hold, after.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import CollectionError, shown
from phs_milvus.contract.types import Float32Array
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.options import SearchOptions
from phs_milvus.milvus.rows import Candidates, Id
from phs_milvus.search.parts import Parts

# Asked for beside the hits: rows that were deleted after the export are missing from Milvus, and a blend of int8 states
# orders the last hits a little differently than one with the stored embeddings.
SPARE = 100


class ScannedRows(NamedTuple):
    """What a scan found of one query, in the order of the ann score.

    candidates: with that score; they have no states.
    query_db: the score of each, by id.
    scanned_at: when the states were exported (UTC).
    """

    candidates: Candidates
    query_db: dict[Id, float]
    scanned_at: datetime


def scan(
    collection: FocusedCollection,
    encoder: Encoder,
    queries: Sequence[Parts],
    score: Literal["query_db", "blend"],
    depth: int,
    *,
    filter: str,
    output_fields: Sequence[str],
    options: SearchOptions,
) -> list[ScannedRows]:
    """The best `depth` rows for each query.

    Raises:
        InvalidInput: the server has no states, Milvus refuses the filter, or it takes more rows than a request names.
        CollectionError: the server's states are of another collection.
        EncoderError: the server could not answer, or its answer was wrong.
    """
    keys = list(collection.iterate_ids(filter=filter, timeout=options.timeout)) if filter else None
    return [_scan(collection, encoder, query, score, depth, keys, output_fields, options) for query in queries]


def _scan(
    collection: FocusedCollection,
    encoder: Encoder,
    query: Parts,
    score: Literal["query_db", "blend"],
    depth: int,
    keys: list[Id] | None,
    output_fields: Sequence[str],
    options: SearchOptions,
) -> ScannedRows:
    asked = query.comparison(score)
    found = encoder.scan(
        asked.embeddings, asked.head_weights, limit=depth, keys=keys, shares=np.atleast_2d(asked.shares)
    )
    if found.collection != collection.name:
        raise CollectionError(
            f"the encoder has the states of collection {shown(found.collection)!r}, and {collection.name!r} is "
            f"searched; start a server with those: phs-milvus export-states --collection {collection.name} FILE, "
            "phs-server --states FILE"
        )
    (ranking,) = found.rankings
    assert ranking.query_scores is not None
    # In a blend the last query is the ann score's.
    scores = ranking.query_scores[:, : len(query.encodings)] @ query.shares
    query_db = dict(zip(ranking.keys, scores.tolist(), strict=True))
    candidates = _fetched(collection, list(query_db), query.ann_embedding, output_fields, options)
    return ScannedRows(candidates, query_db, found.exported_at)


def _fetched(
    collection: FocusedCollection,
    ids: list[Id],
    ann: Float32Array,
    output_fields: Sequence[str],
    options: SearchOptions,
) -> Candidates:
    """The rows that still exist, with the cosine of their embedding and the query's."""
    at = collection.layout
    names = [*output_fields, *({at.embedding} - set(output_fields))]
    rows = collection.get(ids, names, consistency_level=options.consistency_level, timeout=options.timeout)
    embeddings = np.array([row[at.embedding] for row in rows], np.float32).reshape(-1, len(ann))
    length = np.linalg.norm(ann)
    cosines = (embeddings @ (ann / length if length else ann)).astype(np.float32)
    hidden = {at.id, at.embedding} - set(output_fields) - ({at.id} if "*" in output_fields else set())
    fields = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    order = np.argsort(-cosines, kind="stable").tolist()
    return Candidates([rows[n][at.id] for n in order], cosines[order], None, [fields[n] for n in order])


def query_db_of(scanned: ScannedRows, candidates: Candidates) -> Float32Array:
    """float32 [K]: the query_db scores of some of the candidates."""
    return np.array([scanned.query_db[key] for key in candidates.ids], np.float32)
