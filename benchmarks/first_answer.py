"""Seconds from the command to the hits: `phs-milvus search` with a model of its own, and with a running server.

    python -m benchmarks.first_answer [--size base] [--rounds 5]

All start in turn, in processes of their own. "imports" is what a search with --model cannot do without: torch, and the
class of the model. "first ever" has an empty cache folder, so that kernels are tried and the self-check is run. What a
running server computes is not among the processor's seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import REPO, dinov2, photos, print_table, server

_IMPORTS = "import torch; from transformers import Dinov2Model"
_SEARCH = ("search", "photos/0.jpg", "--box", "40,60,180,220")


def seconds_of(command: list[str], folder: Path, **variables: str) -> tuple[float, float]:
    """Wall and processor seconds of a process that must succeed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")]), **variables}
    start, before = time.perf_counter(), _of_children()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start, _of_children() - before


def _of_children() -> float:
    """Processor seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("small", "base", "large", "giant"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    program = [sys.executable, "-m", "phs_milvus"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = dinov2(arguments.size, folder / "model")
        (folder / "photos").mkdir()
        for index, data in enumerate(photos(16)):
            (folder / "photos" / f"{index}.jpg").write_bytes(data)
        with server(model) as (address, _):
            seconds_of([*program, "ingest", "photos", "--encoder", address], folder)
            with_model = [*program, *_SEARCH, "--model", str(model)]
            taken: dict[str, list[tuple[float, float]]] = {}
            for index in range(arguments.rounds):
                kept, empty = str(folder / "cache"), str(folder / f"cache-{index}")
                for title, command, variables in (
                    ("imports", [sys.executable, "-c", _IMPORTS], {}),
                    ("search --model, first ever", with_model, {"XDG_CACHE_HOME": empty}),
                    ("search --model", with_model, {"XDG_CACHE_HOME": kept}),
                    ("search, PHS_ENCODER", [*program, *_SEARCH], {"PHS_ENCODER": address}),
                ):
                    taken.setdefault(title, []).append(seconds_of(command, folder, **variables))
    rows = []
    for title, found in taken.items():
        columns = [
            (statistics.median(mine), statistics.median(map(float.__sub__, mine, theirs)))
            for mine, theirs in zip(zip(*found, strict=True), zip(*taken["imports"], strict=True), strict=True)
        ]
        rows.append([title, *columns[0], *columns[1]])
    header = ["command", "wall, s", "above imports", "processor, s", "above imports"]
    print_table(f"First answers, DINOv2 {arguments.size}/14, {arguments.rounds} rounds", header, rows)


if __name__ == "__main__":
    main()
