"""Which embedding server a command uses: the one that runs, or one of its own, and what it says then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.test_architecture import BLOCK

_COMMANDS = {
    "ingest": ["ingest", "photos"],
    "search": ["search", "photos/image-0001.jpg", "--box", "5,5,60,60", "--json"],
    "explain": ["explain", "photos/image-0001.jpg", "--box", "5,5,60,60"],
    "info": ["info"],
    "demo": ["demo", "--images", "photos", "--output", "page"],
    "eval": ["eval", "labels.csv", "--preset", "heads", "--limit", "6"],
    "tune": ["tune", "labels.csv", "--limit", "6"],
}


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_uses_the_server_that_runs(
    command: str, run: Run, environment: dict[str, str], labels: Path
) -> None:
    """And imports neither torch nor anything of the server."""
    if command == "search":
        assert run("ingest", "photos").returncode == 0
    code = BLOCK.format(names=["torch", "transformers", "phs_server"])
    code += f"from phs_milvus.cli import main; main({_COMMANDS[command]!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=labels.parent, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "loading" not in done.stderr


def test_a_command_that_loads_a_model_says_once_how_not_to(run: Run, tiny_model: Path, photos: list[Path]) -> None:
    model = photos[0].parent.parent / "my model"
    model.symlink_to(tiny_model)
    done = run("explain", photos[1], "--box", "5,5,60,60", "--model", model)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == (
        f"loading {model} for this command alone; to load it once for all: "
        f"phs-server --model '{model}' & export PHS_ENCODER=127.0.0.1:50051"
    )
    assert done.stderr.count("phs-server") == 1


def test_the_model_of_the_environment_is_for_when_no_server_runs(
    run: Run, tiny_model: Path, photos: list[Path]
) -> None:
    for encoder, loads in ((True, False), (False, True)):
        done = run("explain", photos[1], encoder=encoder, PHS_MODEL=str(tiny_model))
        assert done.returncode == 0, done.stderr
        assert ("loading" in done.stderr) is loads
