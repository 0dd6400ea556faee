"""No command drops or overwrites anything but what the user named, or what an earlier run of it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phs_milvus.cli.places import output_file, output_folder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.demo.run import is_demo
from phs_milvus.evaluation.report import Report, is_report
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.cli.conftest import Run
from tests.milvus.support import INFO, make_rows


def test_a_report_replaces_only_a_report(tmp_path: Path) -> None:
    for name in ("README.md", "results.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(InvalidInput, match="holds files of something else; name a new or empty folder") as caught:
            output_folder(tmp_path, "out", is_report)
        assert caught.value.field == "out" and (tmp_path / name).read_text() == "mine"
    earlier = tmp_path / "deep" / "report"
    Report("t", {}).write(output_folder(earlier, "out", is_report))
    assert output_folder(earlier, "out", is_report) == earlier


def test_a_demo_replaces_only_a_demo(tmp_path: Path) -> None:
    for name in ("demo.db", "index.html", "query-1.png", "query-12.png"):
        (tmp_path / name).write_text("")
        assert output_folder(tmp_path, "--output", is_demo) == tmp_path
    (tmp_path / "query-holiday.png").write_text("mine")
    with pytest.raises(InvalidInput, match="holds files of something else"):
        output_folder(tmp_path, "--output", is_demo)


def test_settings_replace_only_settings(tmp_path: Path) -> None:
    file = tmp_path / "new" / "focus.json"
    assert output_file(file, "out", lambda _: False) == file and file.parent.is_dir()
    file.write_text("mine")
    with pytest.raises(InvalidInput, match="is there and holds something else; name another file"):
        output_file(file, "out", lambda _: False)
    assert output_file(file, "out", lambda path: path == file) == file
    with pytest.raises(InvalidInput, match="is a folder; name a file"):
        output_file(tmp_path, "out", lambda _: True)


def test_commands_say_so_before_they_work(run: Run, labels: Path) -> None:
    before = labels.read_bytes()
    for arguments in (
        ("tune", "labels.csv", "--out", "labels.csv"),
        ("eval", "labels.csv", "--out", "."),
        ("demo", "--images", "photos", "--output", "photos"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and "something else" in done.stderr, done.stderr
    assert labels.read_bytes() == before and not (labels.parent / ".phs-eval").exists()
    done = run("search", "photos/image-0000.jpg", "--save", "photos/image-0000.jpg")
    assert done.returncode == 1 and "is the picture that is searched with" in done.stderr


def test_an_evaluation_leaves_a_database_as_it_was(run: Run, labels: Path) -> None:
    """Its own collection is dropped; another, whatever its name, is not."""
    client = connect(str(labels.parent / "mine.db"))
    for name in ("images", "phs_eval_mine"):
        FocusedCollection.create(client, name, INFO).insert(make_rows(["a", "b"]))
    client.create_alias("images", "phs_eval")
    close(client)
    done = run("tune", "labels.csv", "--milvus", "mine.db")
    assert done.returncode == 0, done.stderr
    client = connect(str(labels.parent / "mine.db"))
    assert sorted(client.list_collections()) == ["images", "phs_eval_mine"]
    assert (
        FocusedCollection.open(client, "phs_eval").count()
        == FocusedCollection.open(client, "phs_eval_mine").count()
        == 2
    )
    close(client)


def test_pruning_under_another_root_leaves_rows_alone(run: Run, photos: list[Path]) -> None:
    assert run("ingest", "photos").returncode == 0
    other = photos[0].parents[1] / "other"
    other.mkdir()
    (other / "new.jpg").write_bytes(photos[0].read_bytes())
    done = run("ingest", "other", "--prune")
    assert done.returncode == 0, done.stderr
    facts = json.loads(run("info").stdout)
    assert facts["collection"]["rows"] == 13
