"""Connecting to Milvus, and the databases of Milvus Lite on a disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phs_milvus.contract.errors import CollectionError
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.milvus.support import INFO, lite_only, make_rows


def test_no_server() -> None:
    with pytest.raises(CollectionError, match=r"no Milvus at http://127\.0\.0\.1:1: .*\.db"):
        connect("http://127.0.0.1:1", timeout=2)
    with pytest.raises(CollectionError, match="neither a path"):
        connect("milvus")


@lite_only
def test_lite_takes_one_process_at_a_time(tmp_path: Path) -> None:
    path = str(tmp_path / "held.db")
    client = connect(path)
    collection = FocusedCollection.create(client, "c", INFO)
    collection.insert(make_rows(["a"]))
    second = connect(path)  # the same process may
    program = (
        "import sys; from phs_milvus.milvus.collection import *\n"
        "try: print(FocusedCollection.open(connect(sys.argv[1]), 'c').count())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )

    def elsewhere() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=60)

    blocked = elsewhere()
    assert "CollectionError cannot open Milvus Lite at" in blocked.stdout
    assert "one process at a time" in blocked.stdout
    assert "Traceback" not in blocked.stdout + blocked.stderr
    close(second)
    assert collection.count() == 1
    collection.close()
    assert elsewhere().stdout == "1\n"
    with FocusedCollection.open(connect(path), "c") as again:
        assert again.count() == 1 and again.model == collection.model


@lite_only
def test_lite_killed_while_it_stores_rows(tmp_path: Path) -> None:
    """Rows are stored and the log of them is still there: as a kill -9 at that moment leaves it, see lite.py."""
    path, copy = tmp_path / "killed.db", tmp_path / "wal"
    rows = make_rows([f"r{index}" for index in range(50)])
    with FocusedCollection.create(connect(str(path)), "c", INFO) as collection:
        collection.insert(rows)
        logs = path / "collections" / "c" / "wal"
        shutil.copytree(logs, copy)
        collection.flush()
        collection.insert(make_rows(["later"]))
        shutil.copytree(logs, copy, dirs_exist_ok=True)
    assert len(list(copy.iterdir())) == 2
    shutil.copytree(copy, logs, dirs_exist_ok=True)
    manifest = logs.parent / "manifest.json"
    manifest.write_text((logs.parent / "manifest.json.prev").read_text())  # before "later" was stored
    for _ in range(2):
        with FocusedCollection.open(connect(str(path)), "c") as collection:
            assert collection.count() == 51
            assert list(collection.iterate_ids()) == sorted([*(row.id for row in rows), "later"])
            assert len(collection.search(rows[0].embedding[None], 100)[0]) == 51


@lite_only
def test_lite_at_a_path_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(CollectionError, match="perhaps of Milvus Lite 2"):
        connect(str(tmp_path / "old.db"))
    with pytest.raises(CollectionError, match="cannot open Milvus Lite"):
        connect(str(tmp_path / "old.db" / "x.db"))
