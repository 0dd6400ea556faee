"""What focusing costs: per query, per candidate, and per stored image."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from phs_milvus.client.requests import Outputs
from phs_milvus.contract.state import text_length
from phs_milvus.contract.types import Focus
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.report import Rows, Section
from phs_milvus.pointing.prompts import Mask
from phs_milvus.search.zooms import encode_zooms

_REPEATS = 20
_CANDIDATES = 1000
_RE_ENCODED = 64


def run(study: Study) -> list[Section]:
    """Two tables, of this machine under its present load."""
    return [_latency(study), _storage(study)]


def query_milliseconds(study: Study, focus: Focus | None, repeats: int = _REPEATS) -> tuple[float, float]:
    """Median and 90th percentile of encoding one query; a focus of None is a query without a prompt."""
    queries, images = study.pointed, study.bench.dataset.images

    def encode(number: int) -> None:
        row = number % len(queries)
        prompt = None if focus is None else Mask(queries.masks[row])
        encode_zooms(study.bench.encoder, images[queries.images[row]].path, prompt, focus or Focus())

    return _timed(encode, repeats)


def _latency(study: Study) -> Section:
    bench, focus = study.bench, Focus.paper()
    encoder, info = bench.encoder, bench.info
    repeated = np.resize(bench.states, (_CANDIDATES, 2, info.hidden_size))
    query = encode_zooms(
        encoder, bench.dataset.images[study.pointed.images[0]].path, Mask(study.pointed.masks[0]), focus
    )
    assert query.embedding is not None and query.head_weights is not None
    embedding, weights = query.embedding[None], query.head_weights[None]
    rerank, rerank_slow = _timed(lambda _: encoder.rerank(embedding, weights, repeated), _REPEATS)
    paths = [image.path for image in bench.dataset.images[:_RE_ENCODED]]
    started = time.perf_counter()
    for _ in encoder.encode_many(paths, outputs=Outputs(state=True)):
        pass
    encode = (time.perf_counter() - started) / len(paths) * 1000
    rows = [
        _row("encode a query, no prompt", *query_milliseconds(study, None)),
        _row("encode a query, Query-Only PHS", *query_milliseconds(study, focus)),
        _row("encode a query, roi", *query_milliseconds(study, Focus("all"))),
        _row("encode a query, the default focus", *query_milliseconds(study, Focus())),
        _row("encode a query, roi, zoom 1.25", *query_milliseconds(study, Focus("all", zoom=1.25))),
        _row("encode a query, roi, zoom 0 and 2", *query_milliseconds(study, Focus("all", zoom=(0.0, 2.0)))),
        _row(f"Query-DB of {_CANDIDATES} candidates from states", rerank, rerank_slow),
        _row(f"Query-DB of {_CANDIDATES} candidates, re-encoded", encode * _CANDIDATES),
        _row("encode one image in bulk", encode),
    ]
    note = (
        f"Milliseconds over gRPC on this machine, {_REPEATS} repeats. Re-encoding is measured on {len(paths)} images "
        f"in bulk and multiplied; from states it is {encode * _CANDIDATES / rerank:,.0f} times faster."
    )
    return Section(f"{study.model}, D={info.hidden_size}: latency", note, rows, _bars(rows, "median ms"))


def _storage(study: Study) -> Section:
    info = study.bench.info
    embedding, state = 4 * info.embedding_size, text_length(info.hidden_size)
    rows = [
        {"method": "whole image and Query-Only", "bytes per image": embedding},
        {"method": "Query-DB from states (base64 float16)", "bytes per image": embedding + state},
        {
            "method": "Query-DB, every head subset precomputed",
            "bytes per image": embedding * math.comb(study.heads, info.default_heads),
        },
    ]
    note = "In a Milvus row, without index."
    return Section(f"{study.model}, D={info.hidden_size}: storage", note, rows, _bars(rows, "bytes per image"))


def compare(parts: Sequence[Sequence[Section]]) -> list[Section]:
    """Latency and storage of all models beside each other, from what `run` returned for each."""
    return [
        _beside("All models: latency", [latency for latency, _ in parts], "median ms"),
        _beside("All models: storage", [storage for _, storage in parts], "bytes per image"),
    ]


def _beside(heading: str, sections: Sequence[Section], column: str) -> Section:
    """One column for each model; methods are the same for all, in the same order."""
    models = [section.heading.partition(": ")[0] for section in sections]
    rows = [
        {"method": same[0]["method"], **{model: row[column] for model, row in zip(models, same, strict=True)}}
        for same in zip(*(section.rows for section in sections), strict=True)
    ]
    bars = [{"method": f"{row['method']} ({model})", column: row[model]} for row in rows for model in models]
    return Section(heading, f"{column[0].upper()}{column[1:]}.", rows, _bars(bars, column))


def _bars(rows: Rows, column: str) -> Plot:
    """Of a logarithmic axis, since re-encoding and precomputing cost thousands of times as much as the rest."""
    return Plot(column, "", bars={row["method"]: (float(row[column]), 0.0) for row in rows}, log_x=True)


def _row(name: str, median: float, slow: float | None = None) -> dict[str, object]:
    """`slow` is None where only a total was measured."""
    return {"method": name, "median ms": median, "p90 ms": "" if slow is None else slow, "per second": 1000 / median}


def _timed(call: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Median and 90th percentile in milliseconds, after one call that is not counted."""
    call(0)
    times = []
    for number in range(repeats):
        started = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - started) * 1000)
    return float(np.median(times)), float(np.percentile(times, 90))
