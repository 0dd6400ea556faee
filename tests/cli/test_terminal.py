"""What a command says reaches the terminal, whatever the terminal can show, and Ctrl-C ends it with one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import Run

COMMAND = [sys.executable, "-m", "phs_milvus"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_that_the_terminal_cannot_show(run: Run, photos: list[Path], encoding: str) -> None:
    for path in photos[:4]:
        path.rename(path.with_name(f"漢字 é {path.name}"))
    changes = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    assert run("ingest", "photos", **changes).returncode == 0
    found = run("search", "photos/漢字 é image-0001.jpg", **changes, text=False)
    assert found.returncode == 0, found.stderr
    shown = "漢字 é" if encoding == "utf-8" else r"\u6f22\u5b57 é" if encoding == "cp1252" else r"\u6f22\u5b57 \xe9"
    assert shown.encode(encoding) in found.stdout
    missing = run("search", "漢字.jpg", **changes, text=False)
    assert missing.returncode == 1 and b"not found" in missing.stderr and b"Traceback" not in missing.stderr


ASCII_LOCALE = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def test_figures_on_a_terminal_of_ascii(run: Run, labels: Path) -> None:
    labels.rename(labels.with_name("läbels.csv"))  # in that locale, text that cannot be written
    done = run("eval", "läbels.csv", "--preset", "heads", **ASCII_LOCALE)
    assert done.returncode == 0, done.stderr
    assert (labels.parent / "eval-heads" / "README.md").read_text("utf-8").count("bels, 12 images") == 1
    done = run("tune", "läbels.csv", **ASCII_LOCALE)
    assert done.returncode == 0 and "difference \\xb1 SE" in done.stdout, done.stderr


def test_reports_are_utf_8_in_any_locale(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "from phs_milvus.evaluation.report import *; from pathlib import Path\n"
        "rows = [{'name': '\\u6f22 \\xb1', 'value': 0.5}]\n"
        "Report('\\xe9', {'x': '\\udcff'}, [Section('S', '\\xb1', rows)]).write(Path('out'))"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, env={**environment, **ASCII_LOCALE}, cwd=tmp_path, check=True)
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "# é" in text and "漢 ±" in text and r"x: \udcff" in text
    assert "漢 ±" in (tmp_path / "out" / "s.csv").read_text("utf-8")


def test_output_that_cannot_be_written(run: Run, environment: dict[str, str], photos: list[Path]) -> None:
    assert run("ingest", "photos").returncode == 0
    with open("/dev/full", "w") as full:  # noqa: PTH123
        for arguments in (["info"], ["search", str(photos[0])]):
            done = subprocess.run(
                [*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, env=environment, cwd=photos[0].parents[1]
            )
            assert done.returncode == 1
            assert done.stderr.decode().splitlines()[-1] == "phs-milvus: output: No space left on device"


def test_output_that_nobody_reads_on(environment: dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*COMMAND, "info"], stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=tmp_path)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_without_any_stream(environment: dict[str, str], tmp_path: Path) -> None:
    """As a service manager may start it."""
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *COMMAND, "info"], env=environment, cwd=tmp_path)
    assert done.returncode == 0


INTERRUPTED = (["ingest", "photos"], ["tune", "labels.csv"], ["demo", "--images", "photos"], ["serve", "--port", "0"])


@pytest.mark.parametrize("arguments", INTERRUPTED, ids=lambda arguments: arguments[0])
def test_ctrl_c_while_a_model_loads(
    environment: dict[str, str], labels: Path, tiny_model: Path, arguments: list[str]
) -> None:
    """The moment when a thread is inside C++, which Python could not end without a message of C++."""
    del environment["PHS_ENCODER"]
    command = [*COMMAND, *arguments, "--model", str(tiny_model)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=labels.parent) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        watchdog.cancel()
    assert "Traceback" not in said and "terminate" not in said
    if arguments[0] == "serve":  # a service that is told to end has done its work
        assert process.returncode == 0 and said.splitlines()[-1].endswith("stopped")
        return
    again = "start over" if arguments[0] == "demo" else "continue"
    assert first.startswith("loading ")
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"phs-milvus: interrupted; run the same command again to {again}"


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.3])
def test_ctrl_c_at_the_start(environment: dict[str, str], tmp_path: Path, seconds: float) -> None:
    """While modules are imported."""
    code = (
        "import signal, sys; signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))\n"
        "from phs_milvus.cli import main\n"
        f"signal.setitimer(signal.ITIMER_REAL, {seconds}); main(['search', 'x.jpg', '--encoder', '127.0.0.1:1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stderr.count("\n")) in ((130, 1), (1, 1))
