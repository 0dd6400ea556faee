"""Runs a batch of views on an engine: the trunk once for each that is not held, then the last layer for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from phs_milvus.contract.types import Float32Array
from phs_server.flow.focus import GridPrompt
from phs_server.flow.held import Held, HeldPictures
from phs_server.flow.views import View, masks_of, prompts_of
from phs_server.model.batch import Encoded
from phs_server.model.engine import FocusEngine, compact
from phs_server.model.locate import Located

# Prompts of kept tokens that the last layer sees at once.
_PROMPTS_TOGETHER = 64


class ViewRunner:
    """Runs views of one model, and holds the tokens of those that have a key. Thread-safe."""

    def __init__(self, held: HeldPictures, heads: int, patches: int) -> None:
        self._held = held
        self._heads = heads
        self._patches = patches

    def run(self, engine: FocusEngine, views: Sequence[View]) -> list[list[Any]]:
        """For each view a (Encoded, region feature or None) for each of its prompts; or its one Located.

        Args:
            views: all with the same target, or all without one.
        """
        kept: list[Tensor | None] = [view.tokens for view in views]
        encoded: list[list[Encoded]] = [[] for _ in views]
        fresh = [index for index, view in enumerate(views) if view.tokens is None]
        if fresh:
            firsts, tokens = self._encode_fresh(engine, [views[index] for index in fresh])
            for index, first, theirs in zip(fresh, firsts, tokens, strict=True):
                encoded[index].append(first)
                kept[index] = theirs
                self._hold(views[index], theirs)
        if views[0].target is not None:
            return [[located] for located in self._locate(engine, views, [each for each in kept if each is not None])]
        rest = [(index, prompt) for index, view in enumerate(views) for prompt in view.prompts[len(encoded[index]) :]]
        for (index, _), one in zip(rest, self._encode_kept(engine, kept, rest), strict=True):
            encoded[index].append(one)
        features = self._region_features(engine, views, kept)
        return [list(zip(*parts, strict=True)) for parts in zip(encoded, features, strict=True)]

    def _encode_fresh(
        self, engine: FocusEngine, views: Sequence[View]
    ) -> tuple[list[Encoded], Sequence[Tensor | None]]:
        """The first prompt of each view."""
        pixels = np.stack([view.pixels for view in views if view.pixels is not None])
        prompts = prompts_of([view.prompts[0] for view in views], self._heads, self._patches)
        if not any(view.keeps_tokens for view in views):
            return engine.encode(pixels, prompts).rows(), [None] * len(views)
        encoded, tokens = engine.encode_and_keep(pixels, prompts)
        return encoded.rows(), tokens

    def _hold(self, view: View, tokens: Tensor | None) -> None:
        if view.key is not None and tokens is not None and self._held.get(view.key) is None:
            # A copy of its own: a row of a batch would keep all of the batch.
            self._held.put(view.key, Held(compact(tokens), view.width, view.height))

    def _encode_kept(
        self, engine: FocusEngine, kept: Sequence[Tensor | None], prompts: Sequence[tuple[int, GridPrompt]]
    ) -> list[Encoded]:
        encoded: list[Encoded] = []
        for start in range(0, len(prompts), _PROMPTS_TOGETHER):
            some = prompts[start : start + _PROMPTS_TOGETHER]
            tokens = [each for index, _ in some if (each := kept[index]) is not None]
            batch = prompts_of([prompt for _, prompt in some], self._heads, self._patches)
            encoded += engine.encode_kept(tokens, batch).rows()
        return encoded

    def _region_features(
        self, engine: FocusEngine, views: Sequence[View], kept: Sequence[Tensor | None]
    ) -> list[list[Float32Array | None]]:
        features: list[list[Float32Array | None]] = []
        for view, tokens in zip(views, kept, strict=True):
            if view.region_features and tokens is not None:
                features.append(list(engine.region_features(tokens, masks_of(view.prompts, self._patches))))
            else:
                features.append([None] * len(view.prompts))
        return features

    def _locate(self, engine: FocusEngine, views: Sequence[View], tokens: Sequence[Tensor]) -> list[Located]:
        assert views[0].target is not None
        located = engine.locate(tokens, views[0].target)
        return [Located(*row) for row in zip(*located, strict=True)]
