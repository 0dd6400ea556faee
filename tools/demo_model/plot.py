"""Draws the loss curve: python -m tools.demo_model.plot loss.csv loss.png"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tools.demo_model.train import BATCH, STAGES


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw the loss curve.")
    parser.add_argument("table", type=Path, help="rows of stage, step, seconds, mean loss")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    with args.table.open(newline="") as file:
        rows = [(int(s), int(n), float(loss)) for s, n, _, loss in csv.reader(file)]
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    seen = 0
    for number, stage in enumerate(STAGES):
        points = [(seen + n * BATCH, loss) for s, n, loss in rows if s == number]
        if not points:  # left out by --from
            continue
        label = f"stage {number}, {stage.pixels} px"
        axes.plot(*zip(*points, strict=True), linewidth=1, label=label)
        seen += stage.batches * BATCH
    axes.set(xlabel="scenes shown", ylabel="binary cross-entropy (nats)", ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
