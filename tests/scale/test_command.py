"""`phs-milvus scale` from load to swap, as a user runs it; `scale encode` is in test_ray.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from pymilvus import MilvusClient

from phs_milvus.cli import main
from phs_milvus.milvus.collection import FocusedCollection
from tests.scale.support import write_parts


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        main(["scale", *words])
    done = capsys.readouterr()
    return int(left.value.code or 0), done.out + done.err


def test_from_parquet_to_an_alias(
    tmp_path: Path, client: MilvusClient, name: str, milvus_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parts(tmp_path / "in", [40], "float16")
    where = ["--milvus", milvus_uri]
    status, said = run(capsys, "load", str(tmp_path / "in"), "--collection", name, "--index", "FLAT", *where)
    assert status == 0 and "40 by batches, 0 there already" in said and "exact search: 1.0000" in said
    assert "least cosine 1.000000; states: 40 float16" in said
    status, said = run(capsys, "compact", "--collection", name, *where)
    assert status == 0 and "40 states turned into int8" in said and "40 rows before, 40 after" in said
    status, said = run(capsys, "export", str(tmp_path / "out"), "--collection", name, *where)
    assert status == 0 and "40 written into 1 parts" in said
    copy = f"{name}_copy"
    status, said = run(capsys, "load", str(tmp_path / "out"), "--collection", copy, *where)
    assert status == 0 and "states: 40 int8" in said
    alias = f"{name}_alias"
    assert run(capsys, "swap", alias, name, *where) == (0, f"{alias} means {name}\n")
    assert run(capsys, "swap", alias, copy, *where) == (0, f"{alias} means {copy}, and meant {name} before\n")
    FocusedCollection.open(client, copy).delete(["0/00007.jpg"])
    client.drop_alias(alias)
    status, said = run(capsys, "swap", name, copy, *where)
    assert status == 1 and "is a collection, not an alias" in said


def test_a_load_that_does_not_verify_fails(
    tmp_path: Path, client: MilvusClient, name: str, milvus_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row whose digest says that it is the same, and whose state is another's."""
    pictures = write_parts(tmp_path, [5])
    assert run(capsys, "load", str(tmp_path), "--collection", name, "--milvus", milvus_uri)[0] == 0
    collection = FocusedCollection.open(client, name)
    (row,) = collection.get([pictures[0].key], ["*", "embedding"])
    client.upsert(name, [{**row, "phs_state": pictures[1].state}])
    status, said = run(capsys, "load", str(tmp_path), "--collection", name, "--milvus", milvus_uri)
    assert status == 1 and "of 5 keys 0 are missing and 1 differ" in said and f"differs: {pictures[0].key}" in said
