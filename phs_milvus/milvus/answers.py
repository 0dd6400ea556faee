"""Hits in the shape of pymilvus, for code that was written for MilvusClient.search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymilvus.client.search_result import Hits

from phs_milvus.milvus.rows import Id


def as_hits(key: str, ids: Sequence[Id], scores: Sequence[float], fields: Sequence[Mapping[str, Any]]) -> list[Hits]:
    """What MilvusClient.search returns for one query: a list of one pymilvus Hits.

    Args:
        key: name of the primary key.
        scores: become the distances.
        fields: of each hit; become its entity.
    """
    hits = Hits(len(ids), list(ids), list(scores), {}, [], key)
    for hit, entity in zip(hits, fields, strict=True):
        hit["entity"].update(entity)
    return [hits]
