"""`phs-milvus web` as a user starts it: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.cli.conftest import Run

SECONDS = 60


@pytest.fixture
def ingested(run: Run, photos: list[Path]) -> list[Path]:
    assert run("ingest", photos[0].parent).returncode == 0
    return photos


def info(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/api/v1/info", timeout=SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_it_says_where_the_page_is_and_ends_on_a_signal(
    tmp_path: Path, environment: dict[str, str], ingested: list[Path]
) -> None:
    command = [sys.executable, "-m", "phs_milvus", "web", "--port", "0", "--images", str(ingested[0].parent)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"The page is at (http://127\.0\.0\.1:\d+)\.", line)
            assert found, line
            while (told := info(found[1]))["state"]["name"] != "ready":
                assert told["state"]["name"] == "loading", told
            assert told["collection"]["rows"] == len(ingested)
            assert told["places"]["images"] == str(ingested[0].parent)
            with urlopen(f"{found[1]}/image/{ingested[0].name}?size=256", timeout=SECONDS) as answer:
                assert answer.headers["content-type"] == "image/jpeg"
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--milvus", "nowhere.db"], "no Milvus Lite database"),
        (["--host", "0.0.0.0"], "--token-file"),
        (["--images", "nowhere"], "images"),
        (["--encoder", "127.0.0.1:1", "--model", "m"], "exclude each other"),
        (["--token-file", "nowhere.txt"], "nowhere.txt"),
        (["--model", "./nowhere"], "no directory ./nowhere"),
    ],
)
def test_what_cannot_be_used_is_said_at_once(run: Run, ingested: list[Path], flags: list[str], words: str) -> None:
    done = run("web", "--port", "0", *flags)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
