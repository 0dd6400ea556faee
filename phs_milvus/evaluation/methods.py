"""Ways of pointing, each a small object with a name and a score matrix. Yours needs no more than `Method` asks for.

Q = queries, K = images of the dataset, H = heads, E = embedding size. Scores compare within a row only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus, MaskRuns
from phs_milvus.evaluation.bench import Ask, Bench, QuerySet
from phs_milvus.evaluation.edits import Edit
from phs_milvus.evaluation.head_weights import fixed_weights, head_weights
from phs_milvus.search.scores import Score, blended
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
        return (Ask(focus=self._focus),)

    @property
    def _focus(self) -> Focus:
        return Focus(attention_shift=0, fovea=self.alpha)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        states, _ = bench.look(queries, focus=self._focus)
        return bench.readout(states, _ones(bench, queries)) @ bench.embeddings.T


@dataclass(frozen=True)
class Focused:
    """PHS, roi and zoom, together or alone, by one of the scores of a search; with several zooms, the mean over them.

    Attributes:
        focus: `heads_on` None is the model's default; "all" turns PHS off.
        score: "query_db" reads the database out with the query's weights too; "ann" is Query-Only, with the heads of
            the focus's stage one; "blend" is the mean of both.
        pick, scaled: as in `head_weights`; anything but the defaults is a control.
    """

    focus: Focus = Focus.paper()
    score: Score = "query_db"
    pick: str = "top"
    scaled: bool = True
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or describe(self.focus, self.score, self.pick, self.scaled)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return _asks_of(self.focus)

    def scores(self, bench: Bench, queries: QuerySet) -> Float32Array:
        parts = [self._at_one_zoom(bench, queries, single) for single in self.focus.per_zoom]
        return np.mean(parts, axis=0) if len(parts) > 1 else parts[0]

    def _at_one_zoom(self, bench: Bench, queries: QuerySet, single: Focus) -> Float32Array:
        def part(focus: Focus, query_db: bool) -> Float32Array:
            key = (queries, focus, query_db, self.pick, self.scaled)
            return bench.memo.once(key, lambda: self._part(bench, queries, focus, query_db))

        if self.score == "ann":
            return part(single.stage_one, False)
        if self.score == "query_db":
            return part(single.stage_two, True)
        return blended(part(single.stage_one, False), part(single.stage_two, True))

    def _part(self, bench: Bench, queries: QuerySet, single: Focus, query_db: bool) -> Float32Array:
        embeddings, weights = self.read(bench, queries, single)
        every_head = bool((weights == 1).all())
        return bench.rerank(embeddings, weights) if query_db and not every_head else embeddings @ bench.embeddings.T

    def read(self, bench: Bench, queries: QuerySet, single: Focus) -> tuple[Float32Array, Float32Array]:
        """The queries at one zoom, read out with the heads of `heads_on`: (embeddings [Q, E], head weights [Q, H])."""
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
    """What a user gets: `FocusedSearch` with `candidates` rows for stage two."""

    focus: Focus = Focus.paper()
    candidates: int = 200
    score: Score = "query_db"

    @property
    def name(self) -> str:
        score = None if self.score == "query_db" else self.score
        return f"{describe(self.focus, score, 'top', True)}, two-stage K={self.candidates}"

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
                results = bench.search.search_many(block, limit=depth, candidates=depth, score=self.score)
            for row, result in enumerate(results, start=start):
                scores[row, [int(hit.id) for hit in result]] = [hit.score for hit in result]
        return scores

    def _encoded(self, bench: Bench, queries: QuerySet) -> list[Encoding]:
        """The queries as `FocusedSearch` takes them, from what the bench has encoded before."""
        views = []
        for single in self.focus.per_zoom:
            query_db, weights = Focused().read(bench, queries, single.stage_two)
            ann = (
                query_db
                if single.stage_one == single.stage_two
                else Focused().read(bench, queries, single.stage_one)[0]
            )
            views.append((ann, query_db, weights))
        return [
            combined([_encoding(ann[row], query_db[row], weights[row], mask) for ann, query_db, weights in views])
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
    # Head counts are a matter of the readout.
    alike = replace(focus, heads_on=None, ann_heads=None)
    return tuple(Ask(focus=single) for single in alike.per_zoom if _is_encoded(single))


def _is_encoded(single: Focus) -> bool:
    """Whether a query is encoded for it; otherwise its picture's state and attention are enough."""
    return bool(single.attention_shift or single.single_zoom)


_SCORES = {"ann": "Query-Only", "query_db": "Query-DB", "blend": "blend"}


def describe(focus: Focus, score: Score | None, pick: str, scaled: bool) -> str:
    """A focus in words: "zoom 0+2, roi 1, PHS h=1, Query-DB", or "roi 1, PHS h=5, ANN h=all, blend"."""
    own_ann_heads = score in ("ann", "blend") and focus.stage_one != focus.stage_two
    if score == "ann":
        focus = focus.stage_one
    parts = []
    zooms = focus.zooms
    if any(zooms):
        parts.append("zoom " + "+".join(f"{zoom:g}" for zoom in zooms))
    if focus.attention_shift:
        parts.append(f"roi {focus.attention_shift:g}")
    every_head = pick == "top" and focus.heads_on == "all"
    if not every_head:
        heads = "default" if focus.heads_on is None else str(focus.heads_on)
        kinds = {"top": "PHS", "bottom": "bottom heads", "random": "random heads", "all": "all heads, total of"}
        parts.append(f"{kinds[pick]} h={heads}")
    if not scaled:
        parts.append("unscaled")
    if own_ann_heads and score == "blend":
        parts.append(f"ANN h={'default' if focus.ann_heads is None else focus.ann_heads}")
    if score is not None and not every_head:  # with every head all scores are one
        parts.append(_SCORES[score])
    return ", ".join(parts) or "whole image, every head"


def _ones(bench: Bench, queries: QuerySet) -> Float32Array:
    return np.ones((len(queries), bench.info.heads), np.float32)


def _encoding(ann: Float32Array, query_db: Float32Array, weights: Float32Array, mask: MaskRuns) -> Encoding:
    return Encoding(ann, None, None, weights, None, mask.width, mask.height, query_db_embedding=query_db)
