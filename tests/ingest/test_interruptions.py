"""Ingest that is interrupted by Ctrl-C, kill -9, or a server that goes away."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import EncoderError
from phs_milvus.contract.images import load_image
from phs_milvus.milvus.collection import FocusedCollection, connect
from tests.ingest.support import URI, MakeImages, check_complete, rows_of, run


def test_interrupted_by_ctrl_c(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 40)

    def interrupt(done: int, total: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(root, collection, encoder, batch_size=10, progress=interrupt)
    assert collection.count() == 25
    report = run(root, collection, encoder)
    assert (report.encoded, report.skipped_unchanged) == (15, 25)
    check_complete(root, collection)


def test_the_server_goes_away(
    root: Path, collection: FocusedCollection, tiny_model: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    make_images(root, 200)
    server = ServerThread(Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=0.1))
    server.__enter__()

    def leave(done: int, total: int) -> None:
        if done == 30:
            server.__exit__()

    with Encoder(server.address, timeout=2) as leaving, pytest.raises(EncoderError):
        run(root, collection, leaving, batch_size=10, progress=leave)
    stored = collection.count()
    assert 30 <= stored < 200
    report = run(root, collection, encoder)
    assert (report.encoded, report.skipped_unchanged) == (200 - stored, stored)
    check_complete(root, collection)


PROGRAM = """
import sys
from phs_milvus.client.encoder import Encoder
from phs_milvus.milvus.collection import FocusedCollection, connect
from phs_milvus.ingest.folder import ingest_folder
root, uri, address = sys.argv[1:]
with Encoder(address) as encoder:
    collection = FocusedCollection.open(connect(uri), "images")
    ingest_folder(root, collection, encoder, batch_size=7, progress=lambda done, total: print(done, flush=True))
"""


def ingest_and_kill(root: Path, uri: str, address: str, after: int, pause: float) -> int:
    """Runs an ingest in a process of its own and kills it once `after` files are done; returns the exit code."""
    command = [sys.executable, "-c", PROGRAM, str(root), uri, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if int(line) >= after:
                time.sleep(pause)
                process.kill()
                break
        error = process.stderr.read()
    assert process.returncode in (-signal.SIGKILL, 0), error
    return process.returncode


def test_kill_9(root: Path, tmp_path: Path, address: str, encoder: Encoder, make_images: MakeImages) -> None:
    """Whole rows only; a re-run completes the rest and changes no byte of what was there."""
    uri = URI or str(tmp_path / "killed.db")
    paths = make_images(root, 400)
    with FocusedCollection.create(connect(uri), "images", encoder.info, overwrite=True):
        pass
    moments = random.Random(0)
    states: dict[str, str] = {}
    kills = 0
    for _ in range(3):
        kills += ingest_and_kill(root, uri, address, len(states) + moments.randint(1, 30), moments.random() / 50) != 0
        with FocusedCollection.open(connect(uri), "images") as collection:
            rows = rows_of(collection)
            found = {name: row["phs_state"] for name, row in rows.items()}
            state_codec.unpack(list(found.values()), encoder.info.hidden_size)
            for name, row in rows.items():
                assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-3)
                assert row["digest"] == load_image(root / name).digest and row["width"] == 160
            assert states.items() <= found.items()
            states = found
    assert kills == 3 and 0 < len(states) < 400
    with FocusedCollection.open(connect(uri), "images") as collection:
        report = run(root, collection, encoder)
        assert (report.encoded, report.skipped_unchanged) == (400 - len(states), len(states))
        rows = check_complete(root, collection)
        assert all(rows[name]["phs_state"] == state for name, state in states.items())
    for path in make_images(tmp_path / "others", 200, seed=9):
        shutil.copy(path, root / path.name)
    assert ingest_and_kill(root, uri, address, 40, 0.01) != 0
    with FocusedCollection.open(connect(uri), "images") as collection:
        changed = rows_of(collection)
        assert set(changed) == set(rows)  # replacing a row never loses it
        replaced = [name for name, row in changed.items() if row["digest"] != rows[name]["digest"]]
        assert 0 < len(replaced) < 200
        for name, row in changed.items():
            assert (row == rows[name]) == (name not in replaced)
        assert run(root, collection, encoder).changed == 200 - len(replaced)
        check_complete(root, collection)
        assert len(paths) == collection.count()
