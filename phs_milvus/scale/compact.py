"""Turns a collection's float16 states into int8 ones where they are, in 52 % of the space."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError
from phs_milvus.ingest.files import chunks
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id, Row

_ROWS_PER_PAGE = 2048
_LEAST_COSINE = 0.999  # of the rounded state to the exact one
_PATIENCE_S = 180.0


@dataclass
class CompactReport:
    """What `compact` did.

    Attributes:
        rows: states before, and after.
        converted: by this run; already: those that were int8 before.
        sampled: states that were read again and compared with what they were.
        least_cosine: between them, over residual and head outputs.
        differing: keys whose state or embedding is not what it should be.
        seconds: wall time.
    """

    rows: tuple[int, int] = (0, 0)
    converted: int = 0
    already: int = 0
    sampled: int = 0
    least_cosine: float = 1.0
    differing: list[Id] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether there are as many rows as before and none of the sample differs."""
        return self.rows[0] == self.rows[1] and not self.differing

    def __str__(self) -> str:
        before, after = self.rows
        return (
            f"{self.converted:,} states turned into int8 in {self.seconds:.1f} s, {self.already:,} were int8 already; "
            f"{before:,} rows before, {after:,} after; of {self.sampled:,} compared {len(self.differing):,} differ, "
            f"least cosine {self.least_cosine:.5f}"
        )


def compact(
    collection: FocusedCollection, *, sample: int = 200, progress: Callable[[CompactReport], None] | None = None
) -> CompactReport:
    """Packs every float16 state of a collection anew as int8, a page at a time, and reads a sample again.

    New rows are int8 from the beginning on, and rows of both formats are read meanwhile, so searches go on. Run it
    again after an interruption: what is int8 is left alone. Nothing else should write to the rows meanwhile, because
    whole rows are written. Of an attached collection only the side collection is.

    Args:
        sample: states to compare, spread over the pages.
        progress: called after every page.

    Raises:
        CollectionError: the collection cannot be written to, as one with named partitions.
    """
    started = time.monotonic()
    side = collection.side
    if side is None:
        collection.check_writable()
        if collection.foreign:
            raise CollectionError(
                f"collection {collection.name!r} is filled by its owner, and its states are in a field of theirs; "
                "write to it with pymilvus, state.pack(..., 'int8')"
            )
    before = _count(collection)
    collection.remember_state_format("int8")
    report = CompactReport((before, before))
    kept: dict[Id, tuple[str, Any]] = {}
    pages = max(1, -(-before // _ROWS_PER_PAGE))
    with collection.patient(_PATIENCE_S):
        for ids in chunks(collection.iterate_ids() if side is None else side.iterate_ids(), _ROWS_PER_PAGE):
            converted = _own_page(ids, collection) if side is None else side.compact(ids)
            report.converted += len(converted)
            report.already += len(ids) - len(converted)
            for key in list(converted)[: -(-sample // pages)]:
                kept[key] = converted[key]
            if progress is not None:
                progress(report)
        if report.converted:
            (collection if side is None else side).flush()
        report.rows = before, _count(collection)
        _compare(kept, collection, report)
    report.seconds = time.monotonic() - started
    return report


def _count(collection: FocusedCollection) -> int:
    return collection.count() if collection.side is None else collection.side.count()


def _own_page(ids: list[Id], collection: FocusedCollection) -> dict[Id, tuple[str, Any]]:
    """Converts rows; returns the old packed state and the embedding of those that were float16."""
    at, hidden = collection.layout, collection.model.hidden_size
    old: dict[Id, tuple[str, Any]] = {}
    rows = []
    for row in collection.get(ids, ["*", at.embedding, str(at.state)]):
        key, text, embedding = row.pop(at.id), row.pop(str(at.state)), np.array(row.pop(at.embedding), np.float32)
        digest = row.pop(at.digest, "") if at.digest else ""
        if state_codec.format_of(text, hidden) == "float16":
            old[key] = text, embedding
            rows.append(Row(key, embedding, state_codec.unpack([text], hidden, [key])[0], digest or "", row))
    if rows:
        collection.upsert(rows)
    return old


def _compare(kept: dict[Id, tuple[str, Any]], collection: FocusedCollection, report: CompactReport) -> None:
    at, hidden, ids = collection.layout, collection.model.hidden_size, list(kept)
    report.sampled = len(ids)
    if collection.side is None:
        rows = {row[at.id]: row for row in collection.get(ids, [at.embedding, str(at.state)])}
        found = {key: (row[str(at.state)], row[at.embedding]) for key, row in rows.items()}
    else:
        found = {key: (one.state, None) for key, one in zip(ids, collection.side.read(ids), strict=True)}
    for key, (old, embedding) in kept.items():
        new, now = found.get(key, ("", None))
        same = embedding is None or (now is not None and np.array_equal(np.asarray(now, np.float32), embedding))
        if not same or state_codec.format_of(new, hidden) != "int8":
            report.differing.append(key)
            continue
        exact, rounded = state_codec.unpack([old, new], hidden, [key, key]).astype(np.float64)
        norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
        cosines = np.where(norms > 0, (exact * rounded).sum(axis=1) / np.where(norms > 0, norms, 1), 1)
        report.least_cosine = min(report.least_cosine, float(cosines.min()))
        if not cosines.min() >= _LEAST_COSINE:
            report.differing.append(key)
