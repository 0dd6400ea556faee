"""Every command with nonsense for each of its values: one true line, whatever it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phs_milvus.cli import main
from tests.hostile.places import NONSENSE_NUMBERS, NONSENSE_PATHS, NONSENSE_URIS, make_places

BOX = ("--box", "5,5,60,60")


@dataclass
class Outcome:
    status: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., list[Path]]) -> Path:
    """Photos, labels, a collection, and files that are something else than their names say."""
    folder = tmp_path_factory.mktemp("mistakes")
    paths = make_images(folder / "photos", 3)
    objects = [f"photos/{path.name},{x},5,{x + 40},60,{label}" for path in paths for x, label in ((5, "a"), (80, "b"))]
    (folder / "labels.csv").write_text("\n".join(["image,x0,y0,x1,y1,label", *objects]) + "\n")
    make_places(folder)
    return folder


@pytest.fixture(scope="module")
def here(folder: Path, address: str) -> Iterator[pytest.MonkeyPatch]:
    """A working directory and environment in which a plain `phs-milvus search` works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [name for name in os.environ if name.startswith("PHS_")]:
            patch.delenv(name)
        patch.setenv("PHS_ENCODER", address)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # main sets it
        with pytest.raises(SystemExit) as done:
            main(["ingest", "photos"])
        assert done.value.code == 0
        yield patch


@pytest.fixture
def run(here: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("search", ...) in this process, which takes milliseconds where one of its own takes seconds."""

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as done:
            main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(int(done.value.code or 0), captured.out, captured.err)

    return run


def check(outcome: Outcome, *, most: int = 700) -> None:
    """The last line of an error is ours, is short, and is no confession that we had not thought of it."""
    last = outcome.err.rstrip().rpartition("\n")[2]
    assert "Traceback" not in outcome.err and "please report" not in last, outcome.err
    assert outcome.status in (0, 1, 2)
    assert outcome.status == 0 or "phs-milvus" in last
    assert len(last) < most, last


@pytest.mark.parametrize("path", NONSENSE_PATHS)
@pytest.mark.parametrize(
    "command",
    [
        ("ingest", "{}"),
        ("search", "{}"),
        ("search", "{}", "--stored"),
        ("search", "photos/image-0000.jpg", "--mask", "{}"),
        ("search", "photos/image-0000.jpg", "--settings", "{}"),
        ("search", "photos/image-0000.jpg", "--milvus", "{}"),
        ("search", "image-0000.jpg", "--stored", "--root", "{}"),
        ("explain", "{}"),
        ("explain", "photos/image-0000.jpg", *BOX, "--save", "{}"),
        ("info", "--milvus", "{}.db"),
        ("demo", "--images", "{}", "--output", "demo-output"),
        ("eval", "{}"),
        ("eval", "{}", "--format", "coco"),
        ("tune", "labels.csv", "--images", "{}/none"),
    ],
    ids=" ".join,
)
def test_paths(run: Run, command: tuple[str, ...], path: str) -> None:
    check(run(*(part.format(path) for part in command)))


@pytest.mark.parametrize("command", ["tune --cache", "tune --out", "eval --out", "tune --milvus", "demo --output"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file/x", "a file is where a folder is needed"),
        ("/dev/full/x", "a file is where a folder is needed"),
        ("/proc/nowhere/x", "No such file or directory"),
        ("n" * 3000, "File name too long"),
    ],
    ids=["below a file", "below a device", "in /proc", "too long"],
)
def test_places_that_cannot_be_written(run: Run, command: str, path: str, reason: str) -> None:
    name, flag = command.split()
    arguments = [name] if name == "demo" else [name, "labels.csv"]
    outcome = run(*arguments, flag, f"{path}.db" if flag == "--milvus" else path)
    check(outcome)
    assert outcome.status == 1
    assert reason in outcome.err


@pytest.mark.parametrize("uri", NONSENSE_URIS)
@pytest.mark.parametrize("command", ["info --milvus", "info --encoder"])
def test_addresses_and_their_passwords(run: Run, here: pytest.MonkeyPatch, command: str, uri: str) -> None:
    name, flag = command.split()
    outcome = run(name, flag, uri, "--token", "root:hushhush")
    check(outcome, most=900)
    assert outcome.status == 1
    assert "secretpw" not in outcome.err + outcome.out and "hushhush" not in outcome.err + outcome.out


@pytest.mark.parametrize("value", NONSENSE_NUMBERS)
@pytest.mark.parametrize(
    "command",
    [
        ("search", "photos/image-0000.jpg", *BOX, "--limit={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--candidates={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--heads={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--roi={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--ann-heads={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--min-score={}"),
        ("search", "photos/image-0000.jpg", *BOX, "--like=photos/image-0001.jpg:{},5,60,60"),
        ("eval", "labels.csv", "--queries={}", "--prompt=none"),
        ("search", "photos/image-0000.jpg", *BOX, "--zoom={}"),
        ("explain", "photos/image-0000.jpg", "--box={},5,60,60"),
        ("explain", "photos/image-0000.jpg", "--point={}"),
        ("explain", "photos/image-0000.jpg", "--polygon={} 5,5 6,60"),
        ("ingest", "photos", "--batch-size={}"),
        ("tune", "labels.csv", "--seed={}", "--limit=0"),
        ("eval", "labels.csv", "--limit={}", "--prompt=none"),
    ],
    ids=" ".join,
)
def test_numbers(run: Run, command: tuple[str, ...], value: str) -> None:
    check(run(*(part.format(value) for part in command)))


@pytest.mark.parametrize(
    "value", ["", "a b", "foo bar", "'''", "x" * 70_000, "\udcff", "\n", "é", "../x", "$meta", ",,"]
)
@pytest.mark.parametrize("flag", ["--filter", "--fields", "--collection"])
def test_expressions_and_names(run: Run, flag: str, value: str) -> None:
    check(run("search", "photos/image-0000.jpg", f"{flag}={value}"), most=1200)


@pytest.mark.parametrize("name", ["deep.json", "binary.json", "null.json", "list.json", "number.json", "huge.json"])
@pytest.mark.parametrize(
    "command", ["explain photos/image-0000.jpg --settings", "eval --format coco", "eval --format table", "tune"]
)
def test_files_that_are_something_else(run: Run, command: str, name: str) -> None:
    outcome = run(*command.split(), name)
    check(outcome)
    assert outcome.status == 1 and name in outcome.err


@pytest.mark.parametrize("variable", ["PHS_ENCODER_TOKEN_FILE", "PHS_ENCODER_CA", "PHS_MILVUS"])
@pytest.mark.parametrize("value", ["file/x", "photos", "/dev/zero", "binary.json", "n" * 3000])
def test_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    outcome = run("info")
    check(outcome)
    assert outcome.status == 1


def test_help_does_not_tell_the_password(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHS_MILVUS", "http://me:secretpw@milvus:19530")
    assert "secretpw" not in run("search", "--help").out


def test_an_error_that_is_not_ours_asks_for_a_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise ZeroDivisionError("x" * 10_000)

    monkeypatch.setattr("phs_milvus.cli.search.prompt_of", fails)
    outcome = run("search", "photos/image-0000.jpg")
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "unexpected ZeroDivisionError: xxx" in outcome.err and "PHS_TRACEBACK=1" in outcome.err
    assert len(outcome.err) < 600
    monkeypatch.setenv("PHS_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["search", "photos/image-0000.jpg"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("search", "x.jpg", "--milvus", "nowhere.db"), "no Milvus Lite database at nowhere.db"),
        (("ingest", "no-such-folder"), "no-such-folder"),
        (("search", "x.jpg", "--box", "1,2,3"), "x0,y0,x1,y1"),
        (("search", "x.jpg", "--milvus", "somewhere"), "somewhere"),
        (("explain", "nowhere.jpg"), "nowhere.jpg: not found"),
        (("search", "photos/image-0000.jpg", "--like", "nowhere.jpg"), "IMAGE:X0,Y0,X1,Y1"),
        (("search", "photos/image-0000.jpg", "--unlike", "nowhere.jpg:1,2,30,40"), "nowhere.jpg: not found"),
        (("search", "photos/image-0000.jpg", "--no-rerank", "--score", "blend"), "exclude each other"),
        (("search", "photos/image-0000.jpg", "--min-score", "2"), "min_score: must be -1 to 1"),
        (("tune", "labels.csv", "--model", "a", "--model", "b"), "one model"),
        (("explain", "x.jpg", "--encoder", "127.0.0.1:1", "--model", "m"), "exclude each other"),
    ],
)
def test_mistakes_are_explained_in_a_line(run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = run(*arguments)
    check(outcome)
    assert outcome.status == 1
    assert complaint in outcome.err
