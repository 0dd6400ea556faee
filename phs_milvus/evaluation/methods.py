"""Ways of pointing, each a small object with a name and a score matrix. Yours needs no more than `Method` asks for.

Q = queries, K = images of the dataset, H = heads, E = embedding size. Scores compare within a row only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus, MaskRuns
from phs_milvus.evaluation.bench import Ask, Bench, QuerySet
from phs_milvus.evaluation.edits import Edit
from phs_milvus.evaluation.head_weights import fixed_weights, head_weights
from phs_milvus.search.zooms import combined

# Below any sum of cosines: images outside the candidates rank behind them, in the order of stage one.
_NOT_A_CANDIDATE = -4.0
# Queries of one Milvus call, whose candidates are held at once, states included.
_SEARCHED_TOGETHER = 32


class Method(Protocol):
    """What an experiment needs of a method."""

    @property
    def name(self) -> str:
        """As in tables; unique within one."""

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        """float32 [Q, K], larger is better."""


@dataclass(frozen=True)
class WholeImage:
    """The model's own embedding of the whole image: what search is without pointing."""

    name: str = "whole image"

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        return bench.embeddings[queries.images] @ bench.embeddings.T


@dataclass(frozen=True)
class Edited:
    """The query's pixels edited by the prompt, then a plain embedding."""

    edit: Edit

    @property
    def name(self) -> str:
        return self.edit.name

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (Ask(edit=self.edit),)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        states, _ = bench.look(queries, edit=self.edit)
        return bench.readout(states, _ones(bench, queries)) @ bench.embeddings.T


@dataclass(frozen=True)
class Foveal:
    """FA: a Gaussian bias on the [CLS] row's logits of the last four layers, every head kept."""

    alpha: float = 0.2

    @property
    def name(self) -> str:
        return f"FA, alpha {self.alpha:g}"

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (Ask(focus=Focus(fovea=self.alpha)),)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        states, _ = bench.look(queries, focus=Focus(fovea=self.alpha))
        return bench.readout(states, _ones(bench, queries)) @ bench.embeddings.T


@dataclass(frozen=True)
class Focused:
    """PHS, roi and zoom, together or alone; with several zooms, the mean over them.

    Attributes:
        focus: `heads_on` None is the model's default; "all" turns PHS off.
        query_db: read the database out with the query's weights too; False is Query-Only.
        pick, scaled: as in `head_weights`; anything but the defaults is a control.
    """

    focus: Focus = Focus()
    query_db: bool = True
    pick: str = "top"
    scaled: bool = True
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or describe(self.focus, self.query_db, self.pick, self.scaled)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return _asks_of(self.focus)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        parts = []
        for single in self.focus.per_zoom:
            embeddings, weights = self.read(bench, queries, single)
            every_head = bool((weights == 1).all())
            if self.query_db and not every_head:
                parts.append(bench.rerank(embeddings, weights))
            else:
                parts.append(embeddings @ bench.embeddings.T)
        return np.mean(parts, axis=0) if len(parts) > 1 else parts[0]

    def read(self, bench: Bench, queries: QuerySet, single: Focus) -> tuple[Float32Array, Float32Array]:
        """The queries at one zoom: (embeddings [Q, E], head weights [Q, H])."""
        states: Float16Array
        if _is_encoded(single):
            states, scores = bench.look(queries, focus=single)
        else:
            states, scores = bench.states[queries.images], bench.head_scores(queries)
        count = single.head_count(bench.info.heads, bench.info.default_heads)
        weights = head_weights(scores, count, pick=self.pick, scaled=self.scaled)
        return bench.readout(states, weights), weights


@dataclass(frozen=True)
class FixedHeads:
    """The same heads for every query, whatever it points at: a control that shows what pointing adds."""

    kept: tuple[int, ...]
    query_db: bool = True

    @property
    def name(self) -> str:
        side = "Query-DB" if self.query_db else "Query-Only"
        return f"fixed heads {', '.join(map(str, self.kept))}, {side}"

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        weights = np.tile(fixed_weights(self.kept, bench.info.heads), (len(queries), 1))
        embeddings = bench.readout(bench.states[queries.images], weights)
        return bench.rerank(embeddings, weights) if self.query_db else embeddings @ bench.embeddings.T


@dataclass(frozen=True)
class TwoStage:
    """What a user gets: `FocusedSearch` with `candidates` rows for exact Query-DB."""

    focus: Focus = Focus()
    candidates: int = 200

    @property
    def name(self) -> str:
        return f"{describe(self.focus, None, 'top', True)}, two-stage K={self.candidates}"

    @property
    def asks(self) -> tuple[Ask, ...]:
        return _asks_of(self.focus)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        encoded = self._encoded(bench, queries)
        stage_one = np.stack([query.embedding for query in encoded if query.embedding is not None])
        scores = stage_one @ bench.embeddings.T + _NOT_A_CANDIDATE
        depth = min(self.candidates, len(bench.states))
        for start in range(0, len(queries), _SEARCHED_TOGETHER):
            block = encoded[start : start + _SEARCHED_TOGETHER]
            with bench.timed("searching Milvus"):
                results = bench.search.search_many(block, limit=depth, candidates=depth)
            for row, result in enumerate(results, start=start):
                scores[row, [int(hit.id) for hit in result]] = [hit.score for hit in result]
        return scores

    def _encoded(self, bench: Bench, queries: QuerySet) -> list[Encoding]:
        """The queries as `FocusedSearch` takes them, from what the bench has encoded before."""
        views = [Focused(self.focus).read(bench, queries, single) for single in self.focus.per_zoom]
        return [
            combined([_encoding(embeddings[row], weights[row], mask) for embeddings, weights in views])
            for row, mask in enumerate(queries.masks)
        ]


@dataclass(frozen=True)
class Average:
    """The mean of several methods' scores."""

    parts: Sequence[Method]
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or "mean of " + " and ".join(part.name for part in self.parts)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return tuple(asks_of(self.parts))

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        return np.mean([part.scores(bench, queries) for part in self.parts], axis=0)


def asks_of(methods: Iterable[Method]) -> list[Ask]:
    """What `Bench.look` will be asked for by methods that say so by a property `asks`; others ask when they score."""
    return list(dict.fromkeys(ask for method in methods for ask in getattr(method, "asks", ())))


def _asks_of(focus: Focus) -> tuple[Ask, ...]:
    return tuple(Ask(focus=single) for single in focus.per_zoom if _is_encoded(single))


def _is_encoded(single: Focus) -> bool:
    """Whether a query is encoded for it; otherwise its picture's state and attention are enough."""
    return bool(single.attention_shift or single.single_zoom)


def describe(focus: Focus, query_db: bool | None, pick: str, scaled: bool) -> str:
    """A focus in words: "zoom 0+2, roi 1, PHS h=1, Query-DB"."""
    parts = []
    zooms = focus.zooms
    if any(zooms):
        parts.append("zoom " + "+".join(f"{zoom:g}" for zoom in zooms))
    if focus.attention_shift:
        parts.append(f"roi {focus.attention_shift:g}")
    heads = "default" if focus.heads_on is None else str(focus.heads_on)
    parts.append(
        {"top": "PHS", "bottom": "bottom heads", "random": "random heads", "all": "all heads, total of"}[pick]
        + f" h={heads}"
    )
    if not scaled:
        parts.append("unscaled")
    if query_db is not None:
        parts.append("Query-DB" if query_db else "Query-Only")
    return ", ".join(parts)


def _ones(bench: Bench, queries: QuerySet) -> Float32Array:
    return np.ones((len(queries), bench.info.heads), np.float32)


def _encoding(embedding: Float32Array, weights: Float32Array, mask: MaskRuns) -> Encoding:
    return Encoding(embedding, None, None, weights, None, mask.width, mask.height)
