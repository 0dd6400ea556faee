"""`phs-milvus export-states`, and `search --stage-one scan` with a server that has the file."""

from __future__ import annotations

import json
from pathlib import Path

from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.cli.conftest import Run


def test_a_collection_is_exported_and_scanned(run: Run, photos: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    assert run("ingest", "photos").returncode == 0
    done = run("export-states", "new/photos.states", encoder=False)
    assert done.returncode == 0 and done.stdout.startswith("12 states in new/photos.states, as of 20"), done.stderr
    query = ("search", photos[3], "--box", "20,20,100,90", "--limit", "5", "--json")
    settings = Settings(
        model=str(tiny_model), port=0, precision="float32", states=str(tmp_path / "new" / "photos.states")
    )
    with ServerThread(settings) as server:
        scanned = run(*query, "--stage-one", "scan", PHS_ENCODER=server.address)
    assert scanned.returncode == 0 and "scanned the states as of 20" in scanned.stderr, scanned.stderr
    every = run(*query)
    assert [row["id"] for row in json.loads(scanned.stdout)] == [row["id"] for row in json.loads(every.stdout)]


def test_what_is_not_ours_is_not_overwritten(run: Run, photos: list[Path], tmp_path: Path) -> None:
    assert run("ingest", "photos").returncode == 0
    (tmp_path / "mine.txt").write_text("mine")
    refused = run("export-states", "mine.txt", encoder=False)
    assert refused.returncode == 1 and "file: " in refused.stderr and (tmp_path / "mine.txt").read_text() == "mine"
    without = run("search", photos[3], "--stage-one", "scan")
    assert without.returncode == 1 and "phs-server --states FILE" in without.stderr
