"""Held-out scores of the demo model: classification mAP and focus-oriented retrieval.

    python -m tools.demo_model.score model                      report seeds
    python -m tools.demo_model.score model --seeds selection    to choose h_on or a recipe

A query is a scene and the box of one object; the database is every other scene; a scene is relevant
if it holds an object of the same category. The equations are written out here in plain torch, on
purpose apart from the project's server, so that the two can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel

from phs_milvus.evaluation.measures import standard_error
from tools.demo_model.categories import NAMES
from tools.demo_model.scenes import REPORT_SEEDS, SELECTION_SEEDS, SHIPPED_SIZE, render
from tools.demo_model.shards import labels_of

TOP = 10
CANDIDATES = 200
QUERY_SEED = 5


@dataclass(frozen=True)
class Query:
    """One object of one scene: database row, category number, box as shares of the frame."""

    row: int
    category: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Encoded:
    """The [CLS] row of the last layer, for N images: what PHS reads.

    residual [N, D], attention [N, H, P], heads [N, H, d] as in the design's equations.
    """

    residual: torch.Tensor
    attention: torch.Tensor
    heads: torch.Tensor


def _one(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[tuple]]:
    """Pixels uint8 [S, S, 3], labels uint8 [C], (category, area, box as shares) per object."""
    seed, size = job
    scene = render(seed, SHIPPED_SIZE)
    pixels = scene.image.resize((size, size), Image.Resampling.BILINEAR)
    objects = [(NAMES.index(o.label), int(o.mask.sum()), tuple(v / SHIPPED_SIZE for v in o.box)) for o in scene.objects]
    return np.asarray(pixels), labels_of(scene), objects


def load_scenes(seeds: Iterable[int], size: int) -> tuple[np.ndarray, np.ndarray, list]:
    """Renders scenes as they are shipped, scaled to the model's input."""
    with get_context("spawn").Pool(1) as pool:
        rendered = list(pool.imap(_one, [(seed, size) for seed in seeds], chunksize=16))
    images, labels, objects = zip(*rendered, strict=True)
    return np.stack(images), np.stack(labels), list(objects)


def pick_queries(objects: list[list[tuple]], count: int) -> list[Query]:
    """The largest object per scene and category, scenes of two categories and more; a sample."""
    queries = []
    for row, found in enumerate(objects):
        largest = {}
        for category, area, box in sorted(found, key=lambda item: item[1]):
            largest[category] = (area, box)
        if len(largest) >= 2:
            queries.extend(Query(row, category, box) for category, (_, box) in largest.items())
    order = np.random.default_rng(QUERY_SEED).permutation(len(queries))[:count]
    return [queries[i] for i in order]


def box_on_grid(box: tuple[float, float, float, float], side: int) -> torch.Tensor:
    """Share of every patch's area that the box covers, [side * side], row-major."""
    edges = torch.arange(side + 1) / side
    x0, y0, x1, y1 = box

    def cover(low: float, high: float) -> torch.Tensor:
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * side

    return (cover(y0, y1)[:, None] * cover(x0, x1)[None, :]).flatten()


class Model:
    """The checkpoint, its last layer taken apart."""

    def __init__(self, folder: Path):
        self.vit = AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", add_pooling_layer=False
        ).eval()
        config = self.vit.config
        self.count, self.eps, self.size = (
            config.num_attention_heads,
            config.layer_norm_eps,
            config.image_size,
        )
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        self.mean, self.std = settings["image_mean"][0], settings["image_std"][0]
        # Checkpoint names are stable across transformers versions, module attributes are not.
        weights = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        prefix = f"encoder.layer.{config.num_hidden_layers - 1}."
        self.last = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        self.final = (weights["layernorm.weight"], weights["layernorm.bias"])

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.last[f"{name}.weight"], self.last[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)

    @torch.inference_mode()
    def encode(self, images: np.ndarray, batch: int = 50) -> tuple[Encoded, torch.Tensor]:
        """uint8 [N, S, S, 3] -> PHS state and the model's own [CLS] embeddings [N, D]."""
        parts, own = [], []
        for chunk in np.array_split(images, math.ceil(len(images) / batch)):
            pixels = torch.from_numpy(chunk).permute(0, 3, 1, 2).float() / 255
            out = self.vit((pixels - self.mean) / self.std, output_hidden_states=True)
            own.append(out.last_hidden_state[:, 0])
            parts.append(self._last_layer(out.hidden_states[-2]))
        joined = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Encoded(*joined), torch.cat(own)

    def _last_layer(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """tokens entering the last layer [B, T, D] -> residual, attention, heads."""
        weight, bias = self.last["layernorm_before.weight"], self.last["layernorm_before.bias"]
        normed = self._norm(tokens, weight, bias)
        query, key, value = (
            self._linear(x, f"attention.attention.{name}").unflatten(-1, (self.count, -1))
            for x, name in ((normed[:, 0], "query"), (normed, "key"), (normed, "value"))
        )
        logits = torch.einsum("bhd,bthd->bht", query, key) / math.sqrt(query.shape[-1])
        attention = logits.softmax(-1)
        heads = torch.einsum("bht,bthd->bhd", attention, value)
        return tokens[:, 0], attention[:, :, 1:], heads

    @torch.inference_mode()
    def readout(self, residual: torch.Tensor, heads: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """[N, D], [N, H, d], head weights [H] or [N, H] -> unnormalised embeddings [N, D]."""
        mixed = (w[..., None] * heads).flatten(-2)
        y = residual + self._linear(mixed, "attention.output.dense")
        weight, bias = self.last["layernorm_after.weight"], self.last["layernorm_after.bias"]
        hidden = F.gelu(self._linear(self._norm(y, weight, bias), "intermediate.dense"))
        return self._norm(y + self._linear(hidden, "output.dense"), *self.final)


def head_weights(scores: torch.Tensor, h_on: int) -> torch.Tensor:
    """Head scores [H] -> weights: H/h_on for the h_on best (ties: lowest index), else 0."""
    order = scores.argsort(descending=True, stable=True)[:h_on]
    weights = torch.zeros_like(scores)
    weights[order] = len(scores) / h_on
    return weights


def precision(similar: torch.Tensor, query: Query, labels: np.ndarray) -> tuple[float, float]:
    """(P@10, average precision) of one ranking [N], the query's own scene left out."""
    order = similar.argsort(descending=True).numpy()
    hits = labels[order[order != query.row], query.category].astype(bool)
    ranks = np.flatnonzero(hits) + 1
    average = (np.arange(1, len(ranks) + 1) / ranks).mean() if len(ranks) else 0.0
    return float(hits[:TOP].mean()), float(average)


def retrieval(model: Model, state: Encoded, labels: np.ndarray, queries: list[Query]) -> dict:
    """Method -> [queries, 2] of (P@10, AP)."""
    side = math.isqrt(state.attention.shape[-1])
    every = torch.ones(model.count)
    plain = F.normalize(model.readout(state.residual, state.heads, every), dim=-1)
    results: dict[str, list[tuple[float, float]]] = {}
    for query in queries:
        row = query.row
        scores = state.attention[row] @ box_on_grid(query.box, side)
        results.setdefault("whole image", []).append(precision(plain @ plain[row], query, labels))
        for h_on in range(1, 7):
            w = head_weights(scores, h_on)
            focused = model.readout(state.residual[row : row + 1], state.heads[row : row + 1], w)
            vector = F.normalize(focused, dim=-1)[0]
            read = F.normalize(model.readout(state.residual, state.heads, w), dim=-1)
            query_only, query_db = plain @ vector, read @ vector
            two_stage, first = query_only.clone(), query_only.topk(CANDIDATES).indices
            two_stage[first] = query_db[first] + 2  # before all that are no candidates: cosines are at most 1
            scored = {"Query-Only": query_only, "Query-DB": query_db, f"two-stage, {CANDIDATES}": two_stage}
            for name, similar in scored.items():
                results.setdefault(f"{name} h_on={h_on}", []).append(precision(similar, query, labels))
    return {name: np.array(values) for name, values in results.items()}


def classification(embeddings: torch.Tensor, labels: np.ndarray, checkpoint: Path) -> float:
    """Mean over categories of the average precision, by the classifier of training."""
    parts = torch.load(checkpoint, weights_only=True)["classifier"]
    logits = F.linear(embeddings, parts["weight"], parts["bias"]).numpy()
    scores = []
    for column in range(labels.shape[1]):
        ranks = np.flatnonzero(labels[np.argsort(-logits[:, column]), column]) + 1
        if len(ranks):
            scores.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    return float(np.mean(scores))


def main() -> None:
    """Command line: prints a Markdown table."""
    parser = argparse.ArgumentParser(description="Score the demo model on held-out scenes.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", choices=("report", "selection"), default="report")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--checkpoint", type=Path, help="training checkpoint, for the mAP")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seeds = {"report": REPORT_SEEDS, "selection": SELECTION_SEEDS}[args.seeds][: args.scenes]
    model = Model(args.model)
    images, labels, objects = load_scenes(seeds, model.size)
    state, own = model.encode(images)
    rebuilt = model.readout(state.residual, state.heads, torch.ones(model.count))
    print(f"{len(images)} scenes, seeds {seeds.start}-{seeds.stop - 1}; ", end="")
    print(f"readout with w = 1 against the model: {(rebuilt - own).abs().max():.1e}")
    if args.checkpoint:
        print(f"classification mAP {classification(own, labels, args.checkpoint):.3f}")
    queries = pick_queries(objects, args.queries)
    chance = np.mean([(labels[:, q.category].sum() - 1) / (len(labels) - 1) for q in queries])
    print(f"{len(queries)} box queries; chance {chance:.3f}\n")
    results = retrieval(model, state, labels, queries)
    base = results["whole image"]
    print("| method | MP@10 | against whole image | mAP |\n| --- | --- | --- | --- |")
    for name, values in results.items():
        gain = values[:, 0] - base[:, 0]
        error = standard_error(gain)
        mean, ap = values.mean(0)
        change = "" if name == "whole image" else f"{gain.mean():+.3f} ± {error:.3f}"
        print(f"| {name} | {mean:.3f} | {change} | {ap:.3f} |")


if __name__ == "__main__":
    main()
