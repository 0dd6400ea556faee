"""Plots of a report, with matplotlib where it is installed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# (x, y, error of y or 0)
Points = Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Plot:
    """Lines over a number, or horizontal bars over names.

    Attributes:
        lines: points by the line's name.
        bars: (value, error) by the bar's name, drawn instead of lines.
        level: a horizontal line (vertical for bars) to compare with, and its name.
    """

    x: str
    y: str
    lines: Mapping[str, Points] | None = None
    bars: Mapping[str, tuple[float, float]] | None = None
    level: tuple[float, str] | None = None
    log_x: bool = False


def draw(plot: Plot, path: Path) -> bool:
    """Writes a PNG; False, and one line on stderr, where matplotlib is missing."""
    if not _has_matplotlib():
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 4.2 if plot.bars is None else 1.2 + 0.26 * len(plot.bars)
    figure = Figure(figsize=(8, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3, axis="both" if plot.bars is None else "x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if plot.bars is not None:
        names = list(plot.bars)[::-1]
        values, errors = zip(*(plot.bars[name] for name in names), strict=True)
        axes.barh(names, values, xerr=errors, color="#4c78a8", ecolor="#555555", height=0.7)
        low = min(values)
        if low > 0 and not plot.log_x:
            axes.set_xlim(max(0.0, low - 0.3 * (max(values) - low) - 0.01))
        if plot.level:
            axes.axvline(plot.level[0], color="#e45756", linestyle="--", label=plot.level[1])
            axes.legend(frameon=False, fontsize=8)
    for number, (name, points) in enumerate((plot.lines or {}).items()):
        xs, ys, errors = zip(*points, strict=True)
        # Colours repeat after ten.
        style = "-" if number < 10 else "--"
        axes.errorbar(
            xs, ys, yerr=errors, label=name, linestyle=style, linewidth=1.4, marker="o", markersize=4, capsize=2
        )
    if plot.lines is not None:
        if plot.level:
            axes.axhline(plot.level[0], color="#888888", linestyle="--", linewidth=1, label=plot.level[1])
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    if plot.log_x:
        axes.set_xscale("log")
    if plot.lines is not None and all(x == int(x) and x < 50 for points in plot.lines.values() for x, _, _ in points):
        axes.set_xticks(sorted({x for points in plot.lines.values() for x, _, _ in points}))
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    figure.savefig(path, metadata={"Software": None})
    return True


@functools.cache
def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plots: pip install 'phs-milvus[eval]' for matplotlib", file=sys.stderr)
        return False
    return True
