"""A report of an experiment in one folder: Markdown to read, CSV and JSON to work with, PNG plots to look at."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from phs_milvus.evaluation.plots import Plot, draw

# Whatever the locale; file names that are no text are written with their bytes escaped.
_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Section:
    """A table with what it shows, and perhaps a plot. Rows share their keys, which are the columns."""

    heading: str
    note: str
    rows: Rows
    plot: Plot | None = None

    @property
    def slug(self) -> str:
        """The name of its files."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


@dataclass
class Report:
    """Sections under a title, with the facts that say what was measured."""

    title: str
    facts: dict[str, Any]
    sections: list[Section] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Writes README.md, results.json, and a CSV and a PNG for each section; returns the Markdown file."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        for section in self.sections:
            lines += ["", f"## {section.heading}", "", section.note, "", _table(section.rows, "pipe")]
            _write_csv(folder / f"{section.slug}.csv", section.rows)
            if section.plot is not None and draw(section.plot, folder / f"{section.slug}.png"):
                lines += ["", f"![{section.heading}]({section.slug}.png)"]
        file = folder / "README.md"
        file.write_text("\n".join(lines) + "\n", **_TEXT)
        contents = {
            "title": self.title,
            "facts": self.facts,
            "sections": [{"heading": s.heading, "note": s.note, "rows": list(s.rows)} for s in self.sections],
        }
        (folder / "results.json").write_text(json.dumps(contents, indent=1, default=str) + "\n", "utf-8")
        return file


def is_report(folder: Path) -> bool:
    """Whether a folder was written by `Report.write`."""
    try:
        return {"title", "facts", "sections"} <= set(json.loads((folder / "results.json").read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def as_text(rows: Rows) -> str:
    """A table for the terminal."""
    return _table(rows, "plain")


def _table(rows: Rows, form: str) -> str:
    if not rows:
        return "(nothing)"
    cells = [[_shown(value) for value in row.values()] for row in rows]
    align = ["right" if isinstance(value, int | float) else "left" for value in rows[0].values()]
    return tabulate(cells, list(rows[0]), form, disable_numparse=True, colalign=align)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def _write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", **_TEXT) as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
