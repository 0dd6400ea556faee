"""What every experiment starts from: a bench, its queries, and the tables they all share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from phs_milvus.evaluation.bench import Bench, QuerySet
from phs_milvus.evaluation.measures import DEPTH, DEPTHS, Outcome, evaluate, evaluate_all, paired
from phs_milvus.evaluation.methods import Method, WholeImage, asks_of
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.queries import ObjectQuery

METRIC = f"MP@{DEPTH}"
_FEWEST = 3


@dataclass(frozen=True, eq=False)
class Study:
    """One model on one dataset.

    Attributes:
        queries: the objects that are queries, each of which every kind of prompt can point at.
        prompts: kinds of prompt to measure; the first is the one of experiments that use one.
        seed: of jitters and folds.
        left_out: objects that would be queries and cannot be pointed at, with the reason.
    """

    bench: Bench
    queries: Sequence[ObjectQuery]
    prompts: tuple[str, ...] = ("box",)
    seed: int = 0
    left_out: Sequence[str] = ()

    @cached_property
    def pointed(self) -> QuerySet:
        """The queries under the first kind of prompt."""
        return self.bench.queries(self.queries, self.prompts[0])

    @cached_property
    def base(self) -> Outcome:
        """Whole-image search, which everything is compared with; the prompt does not matter to it."""
        return evaluate(WholeImage(), self.bench, self.pointed)

    @property
    def model(self) -> str:
        """The model's name without the folder or organisation it is in."""
        return self.bench.info.model_id.rstrip("/").rpartition("/")[2]

    @property
    def metric(self) -> str:
        """What is compared: MP@100, as published; mAP where so few images are there that 100 would be most of them."""
        return METRIC if len(self.bench.dataset.images) >= _FEWEST * DEPTH else "mAP"

    @property
    def heads(self) -> int:
        """H."""
        return self.bench.info.heads

    def measure(self, methods: Iterable[Method], queries: QuerySet | None = None) -> list[Outcome]:
        """Evaluates methods side by side, with a progress bar; the queries are encoded for all of them before."""
        methods = list(methods)
        chosen = self.pointed if queries is None else queries
        self.bench.look_ahead(chosen, asks_of(methods))
        with tqdm(total=len(methods) * len(chosen), unit="query", dynamic_ncols=True, leave=False) as bar:

            def done(method: Method, count: int) -> None:
                bar.set_description(method.name[:40])
                bar.update(count)

            return evaluate_all(methods, self.bench, chosen, on_block=done)

    def row(self, outcome: Outcome, **first: Any) -> dict[str, Any]:
        """A table's row: the metrics, and the paired difference to whole-image search."""
        difference = paired(outcome, self.base, self.metric, seed=self.seed)
        others = [METRIC, *(f"MP@{depth}" for depth in DEPTHS if depth != DEPTH), "mAP", f"recall@{DEPTH}"]
        return {
            **first,
            "method": outcome.method,
            self.metric: outcome.mean(self.metric),
            "difference": difference.mean,
            "SE": difference.error,
            "95% low": difference.low,
            "95% high": difference.high,
            **{name: outcome.mean(name) for name in others if name != self.metric},
        }

    def bars(self, outcomes: Sequence[Outcome]) -> Plot:
        """Each method's metric, with the standard error of its difference to whole-image search."""
        values: Mapping[str, tuple[float, float]] = {
            outcome.method: (outcome.mean(self.metric), paired(outcome, self.base, self.metric).error)
            for outcome in outcomes
        }
        return Plot(self.metric, "", bars=values, level=(self.base.mean(self.metric), "whole image"))
