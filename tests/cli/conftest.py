"""The command line as a user runs it: real processes, a real server, Milvus Lite in a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(address: str) -> dict[str, str]:
    """The environment of a user whose encoder is the running server."""
    known = {key: value for key, value in os.environ.items() if not key.startswith("PHS_")}
    known["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return {**known, "PHS_ENCODER": address}


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """run("search", ...): phs-milvus in tmp_path, with the running server as its encoder unless encoder=False."""

    def run(
        *arguments: object, encoder: bool = True, text: bool = True, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "phs_milvus", *map(str, arguments)]
        known = dict(environment)
        if not encoder:
            del known["PHS_ENCODER"]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**known, **changes},
            capture_output=True,
            text=text,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def photos(tmp_path: Path, make_images: Callable[..., list[Path]]) -> list[Path]:
    return make_images(tmp_path / "photos", 12)


@pytest.fixture
def labels(tmp_path: Path, photos: list[Path]) -> Path:
    """A CSV of two objects on each photo."""
    lines = ["image,x0,y0,x1,y1,label"]
    for path in photos:
        lines += [f"photos/{path.name},5,5,60,60,cat", f"photos/{path.name},80,40,150,110,dog"]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "labels.csv"
