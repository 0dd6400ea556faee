"""A server that is pointed at a folder which holds no model ends soon, small, and in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_HANGS = 120.0
# Runs a command and prints the most memory that it held, in KiB. In an interpreter of its own: the system's count for a
# child begins with what its parent held when it was forked, and a process that has run many tests holds gigabytes.
MEASURED = f"""
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, timeout={_HANGS})
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def layers(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))


def fifo(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (layers, "config.json of model .*: num_hidden_layers is 1000000000"),
        (fifo, "model.safetensors of model .* is not a file"),
        (processor, "preprocessor_config.json of model .* is a list"),
    ],
)
def test_one_line_and_no_memory(damage: Callable[[Path], None], named: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(folder)
    command = [
        sys.executable,
        "-c",
        MEASURED,
        sys.executable,
        "-m",
        "phs_server",
        "--model",
        str(folder),
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _HANGS)
    lines = done.stderr.splitlines()
    assert done.returncode in (1, 2)
    assert len([line for line in lines if "INFO" not in line]) == 1
    assert lines[-1].startswith("phs-server: ") and re.search(named, lines[-1])
    assert int(done.stdout) < 1500 * 1024  # KiB
