"""Where the selected heads look in scenes that hold the object: why Query-DB finds some of them and misses others.

    python -m tools.demo_model.query_db model --h-on 3

For every query and every other scene with an object of its category: the share of the selected heads' attention that
lies on that object there, and whether Query-Only and Query-DB have the scene among their first R, of R such scenes.
Prints the pairs in quarters, from little attention on the object to much.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tools.demo_model.scenes import REPORT_SEEDS, SELECTION_SEEDS
from tools.demo_model.score import Encoded, Model, Query, box_on_grid, head_weights, load_scenes, pick_queries

QUARTERS = 4


def on_category(objects: list[tuple], category: int, side: int) -> torch.Tensor:
    """Share of every patch [side * side] that boxes of one category cover in a scene."""
    boxes = [box_on_grid(box, side) for found, _, box in objects if found == category]
    return torch.stack(boxes).sum(0).clamp(max=1)


def pairs(
    model: Model, state: Encoded, labels: np.ndarray, objects: list[list[tuple]], queries: list[Query], h_on: int
) -> np.ndarray:
    """float [pairs, 3]: attention on the object, found by Query-Only, found by Query-DB."""
    side = math.isqrt(state.attention.shape[-1])
    plain = F.normalize(model.readout(state.residual, state.heads, torch.ones(model.count)), dim=-1)
    rows = []
    for query in queries:
        w = head_weights(state.attention[query.row] @ box_on_grid(query.box, side), h_on)
        read = F.normalize(model.readout(state.residual, state.heads, w), dim=-1)
        relevant = np.flatnonzero(labels[:, query.category])
        relevant = relevant[relevant != query.row]
        first = [set(firsts(vectors @ read[query.row], query.row, len(relevant))) for vectors in (plain, read)]
        looks = state.attention[:, w > 0].mean(1)
        for row in relevant:
            share = float(looks[row] @ on_category(objects[row], query.category, side))
            rows.append((share, row in first[0], row in first[1]))
    return np.array(rows, float)


def firsts(similar: torch.Tensor, own: int, count: int) -> list[int]:
    """Rows of the best `count`, the query's own left out."""
    return [row for row in similar.argsort(descending=True).tolist()[: count + 1] if row != own][:count]


def main() -> None:
    """Command line: prints a Markdown table."""
    parser = argparse.ArgumentParser(description="Attention on the object in scenes that hold it, and who finds them.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--h-on", type=int, default=3)
    parser.add_argument("--seeds", choices=("report", "selection"), default="report")
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--queries", type=int, default=600)
    args = parser.parse_args()
    seeds = {"report": REPORT_SEEDS, "selection": SELECTION_SEEDS}[args.seeds][: args.scenes]
    model = Model(args.model)
    images, labels, objects = load_scenes(seeds, model.size)
    state, _ = model.encode(images)
    with torch.inference_mode():
        found = pairs(model, state, labels, objects, pick_queries(objects, args.queries), args.h_on)
    print("| attention on the object | pairs | found by Query-Only | found by Query-DB |\n| --- | --- | --- | --- |")
    for part in np.array_split(found[found[:, 0].argsort()], QUARTERS):
        share, query_only, query_db = part.mean(0)
        span = f"{part[0, 0]:.2f} to {part[-1, 0]:.2f}, mean {share:.2f}"
        print(f"| {span} | {len(part):,} | {query_only:.3f} | {query_db:.3f} |")


if __name__ == "__main__":
    main()
