"""A server that is pointed at a folder which holds no model ends soon, small, and in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

_HANGS = 120.0


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
    command = [sys.executable, "-m", "phs_server", "--model", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    hangs = threading.Timer(_HANGS, process.kill)
    hangs.start()
    assert process.stderr is not None
    with process.stderr as stderr:
        lines = stderr.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    hangs.cancel()
    assert process.returncode in (1, 2)
    assert len([line for line in lines if "INFO" not in line]) == 1
    assert lines[-1].startswith("phs-server: ") and re.search(named, lines[-1])
    assert usage.ru_maxrss < 1500 * 1024  # KiB
