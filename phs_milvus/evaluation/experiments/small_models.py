"""Why few heads gain little, the paper's open question: how much heads differ, and how much pointing can choose.

Two measures of diversity over the dataset. Linear CKA between the outputs of two heads (arXiv 1905.00414): 1 where one
is the other up to rotation and scale. And the correlation of two heads' attention maps: 1 where they always look at the
same places, so that no prompt can tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.types import Float16Array, Float32Array, Focus
from phs_milvus.evaluation.experiments.study import Study
from phs_milvus.evaluation.methods import Focused
from phs_milvus.evaluation.plots import Plot
from phs_milvus.evaluation.report import Section

FloatArray = npt.NDArray[np.float64]

_GAIN = "{}, difference to whole image"


def run(study: Study) -> list[Section]:
    """The pairs of heads, how decided the selection is, and the gain at every head count."""
    bench = study.bench
    cka = head_cka(bench.states, study.heads)
    correlation = attention_correlation(bench.attention)
    scores = np.sort(bench.head_scores(study.pointed), axis=1)
    best = np.argmax(bench.head_scores(study.pointed), axis=1)
    shares = np.bincount(best, minlength=study.heads) / len(best)
    pairs = [
        {
            "heads": f"{a} and {b}",
            "CKA of outputs": float(cka[a, b]),
            "correlation of attention": float(correlation[a, b]),
        }
        for a, b in combinations(range(study.heads), 2)
    ]
    upper = np.triu_indices(study.heads, 1)
    summary = [
        {
            "model": study.model,
            "heads": study.heads,
            "h_on": bench.info.default_heads,
            "mean CKA": float(cka[upper].mean()) if len(upper[0]) else 1.0,
            "mean attention correlation": float(correlation[upper].mean()) if len(upper[0]) else 1.0,
            "attention on prompt, best head": float(scores[:, -1].mean()),
            "attention on prompt, mean head": float(scores.mean()),
            "most frequent best head": float(shares.max()),
        }
    ]
    gains = [
        study.row(outcome, heads=count)
        for count, outcome in enumerate(
            study.measure([Focused(Focus.paper(count)) for count in range(1, study.heads + 1)]), start=1
        )
    ]
    lines = {"PHS, Query-DB": [(float(row["heads"]), row["difference"], row["SE"]) for row in gains]}
    plot = Plot("heads kept (h_on)", _GAIN.format(study.metric), lines=lines, level=(0.0, "whole image"))
    name = f"{study.model}, {study.heads} heads"
    return [
        Section(f"{name}: summary", "Means over pairs of heads and over queries.", summary),
        Section(f"{name}: pairs of heads", "Over all images of the dataset.", pairs),
        Section(
            f"{name}: gain by head count",
            f"{study.metric} and its paired difference to whole-image search.",
            gains,
            plot,
        ),
    ]


def compare(parts: Sequence[Sequence[Section]]) -> list[Section]:
    """Head count against gain: one row and one line for each model, from what `run` returned for it."""
    rows, lines = [], {}
    axis = ""
    for summary, _, gains in parts:
        assert gains.plot is not None
        axis, facts = gains.plot.y, summary.rows[0]
        default = gains.rows[facts["h_on"] - 1]
        best = max(gains.rows, key=lambda row: row["difference"])
        rows.append(
            {
                **facts,
                "gain at h_on": default["difference"],
                "SE": default["SE"],
                "best heads kept": best["heads"],
                "its gain": best["difference"],
                "its SE": best["SE"],
            }
        )
        lines[f"{facts['model']}, {facts['heads']} heads"] = [
            (row["heads"] / facts["heads"], row["difference"], row["SE"]) for row in gains.rows
        ]
    rows.sort(key=lambda row: row["heads"])
    note = "PHS, Query-DB. The best number of heads to keep is picked with hindsight; the gain at h_on is not."
    plot = Plot("share of the heads kept", axis, lines=lines, level=(0.0, "whole image"))
    return [Section("All models: head count against gain", note, rows, plot)]


def head_cka(states: Float16Array, heads: int) -> FloatArray:
    """[H, H]: linear CKA between the heads' outputs over K images; states are [K, 2, D]."""
    outputs = states[:, 1].astype(np.float64).reshape(len(states), heads, -1)
    outputs = outputs - outputs.mean(axis=0)
    similar = np.einsum("kai,kbj->abij", outputs, outputs)
    shared = (similar**2).sum(axis=(2, 3))
    own = np.sqrt(np.diag(shared))
    return shared / np.outer(own, own)


def attention_correlation(attention: Float32Array) -> FloatArray:
    """[H, H]: Pearson correlation over patches of two heads' attention maps [K, H, N], the mean over K images."""
    centred = attention - attention.mean(axis=2, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=2, keepdims=True)
    return np.einsum("kan,kbn->ab", unit, unit).astype(np.float64) / len(attention)
