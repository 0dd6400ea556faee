"""Is what the Parquet files hold what the collection holds, and does its index find it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id
from phs_milvus.scale.parts import Picture, model_of, parts_at, read, rows_of
from phs_milvus.scale.places import Place

LEAST_COSINE = 0.9999  # of a stored embedding to its own; an index of another precision is not among them
_SHOWN = 5


@dataclass
class Verification:
    """What `verify` found.

    Attributes:
        rows: of the Parquet files that have a state.
        stored: of the collection.
        missing: keys of the sample that the collection does not have.
        differing: keys of the sample whose embedding or state is another one.
        sampled: keys looked at.
        least_cosine: between the embeddings of the sample, in Parquet and collection.
        state_formats: of the sample's states in the collection, with their numbers.
        recall: share of the exact nearest `k` that the collection's search finds, mean over the sample; None where the
            collection has other rows too.
        k: neighbours that were compared.
    """

    rows: int = 0
    stored: int = 0
    missing: list[Id] = field(default_factory=list)
    differing: list[Id] = field(default_factory=list)
    sampled: int = 0
    least_cosine: float = 1.0
    state_formats: dict[str, int] = field(default_factory=dict)
    recall: float | None = None
    k: int = 10

    @property
    def good(self) -> bool:
        """Whether nothing is missing and nothing differs."""
        return not self.missing and not self.differing and self.stored >= self.rows

    def __str__(self) -> str:
        formats = ", ".join(f"{count:,} {name}" for name, count in sorted(self.state_formats.items()))
        lines = [
            f"{self.stored:,} rows in the collection, {self.rows:,} in the Parquet files",
            f"of {self.sampled:,} keys {len(self.missing):,} are missing and {len(self.differing):,} differ; least "
            f"cosine {self.least_cosine:.6f}; states: {formats or 'none'}",
        ]
        if self.recall is not None:
            lines.append(f"recall@{self.k} of the index against exact search: {self.recall:.4f}")
        elif self.sampled:
            lines.append("recall was not measured: the collection has other rows too")
        lines += [f"  missing: {key}" for key in self.missing[:_SHOWN]]
        lines += [f"  differs: {key}" for key in self.differing[:_SHOWN]]
        return "\n".join(lines)


def verify(
    paths: Sequence[str], collection: FocusedCollection, *, sample: int = 200, k: int = 10, seed: int = 0
) -> Verification:
    """Compares Parquet files with the collection that they were loaded into.

    Args:
        sample: rows that are compared one by one, and whose embeddings are the queries that recall is measured with.
        k: neighbours that each of these queries asks for.
        seed: of the sample.

    Raises:
        InvalidInput, ModelMismatch: as `load`.
    """
    parts = parts_at(paths)
    collection.model.check(model_of(parts), collection.name)
    total = sum(rows_of(part) for part in parts)
    wanted = np.sort(np.random.default_rng(seed).choice(total, min(sample, total), replace=False))
    found = Verification(stored=collection.count(), k=k)
    chosen: list[Picture] = []
    position = 0
    for page in _pages(parts):
        inside = wanted[(wanted >= position) & (wanted < position + len(page))]
        chosen += [page[int(index) - position] for index in inside]
        found.rows += sum(one.state is not None for one in page)
        position += len(page)
    chosen = [one for one in chosen if one.state is not None]
    _compare(chosen, collection, found)
    if chosen and found.stored == found.rows:
        found.recall = _recall(parts, chosen, collection, k)
    return found


def _pages(parts: list[Place]) -> Iterator[list[Picture]]:
    for part in parts:
        yield from read(part)


def _compare(chosen: list[Picture], collection: FocusedCollection, found: Verification) -> None:
    at, hidden = collection.layout, collection.model.hidden_size
    rows = {row[at.id]: row for row in collection.get([one.key for one in chosen], [at.embedding, str(at.state)])}
    found.sampled = len(chosen)
    for one in chosen:
        row = rows.get(one.key)
        if row is None:
            found.missing.append(one.key)
            continue
        stored = np.asarray(row[at.embedding], np.float32)
        cosine = float(stored @ one.embedding / (np.linalg.norm(stored) * np.linalg.norm(one.embedding)))
        found.least_cosine = min(found.least_cosine, cosine)
        text = row[str(at.state)]
        name = str(state_codec.format_of(text, hidden))
        found.state_formats[name] = found.state_formats.get(name, 0) + 1
        if not cosine >= LEAST_COSINE or not _same_state(text, str(one.state), hidden):
            found.differing.append(one.key)


def _same_state(text: str, other: str, hidden_size: int) -> bool:
    """Whether two packed states are one, as far as the coarser of their formats tells."""
    if len(text) == len(other):
        return text == other
    exact = max(text, other, key=len)  # float16
    return state_codec.pack(state_codec.unpack([exact], hidden_size)[0], "int8") == min(text, other, key=len)


def _recall(parts: list[Place], chosen: list[Picture], collection: FocusedCollection, k: int) -> float:
    """Of each query's exact nearest k, the share that the collection finds. Ties count as found."""
    queries = np.array([one.embedding for one in chosen], np.float32)
    k = min(k, collection.count())
    best = np.full((len(queries), k), -np.inf, np.float32)
    for page in _pages(parts):
        embeddings = np.array([one.embedding for one in page if one.state is not None], np.float32)
        if len(embeddings):
            best = -np.sort(-np.concatenate([best, queries @ embeddings.T], axis=1), axis=1)[:, :k]
    hits = collection.search(queries, k, consistency_level="Strong")
    shares = [
        np.mean(np.sort(one.scores)[::-1] >= least - 1e-4) if len(one) == k else len(one) / k
        for one, least in zip(hits, best[:, -1], strict=True)
    ]
    return float(np.mean(shares))
