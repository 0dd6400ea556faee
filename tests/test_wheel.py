"""The wheel: what is in it, how large it is, and that it works where nothing of this clone is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.servers import REPO

pytestmark = pytest.mark.slow
EVERY_NAME = "import phs_milvus; [getattr(phs_milvus, name) for name in phs_milvus.__all__]; print(phs_milvus.__file__)"


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as a newcomer would: in an empty folder, and without this clone on Python's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(folder, sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel, and what it declares that it needs; no extras."""
    folder = tmp_path_factory.mktemp("fresh")
    for command in (
        (sys.executable, "-m", "venv", folder),
        (folder / "bin/pip", "install", "--quiet", "--constraint", REPO / "constraints.txt", wheel),
    ):
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_wheel_is_small_and_holds_types_but_no_model(wheel: Path) -> None:
    assert wheel.stat().st_size < 700_000
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= {"phs_milvus/py.typed", "phs_server/py.typed", "phs_milvus/web/static/index.html"}
    kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
    page, fiftyone = {".html", ".css", ".js", ".svg"}, {".yml"}
    assert kinds == {".py", ".pyi", ".typed"} | page | fiftyone


def test_every_public_name_needs_only_what_the_wheel_declares(fresh: Path, tmp_path: Path) -> None:
    done = run(tmp_path, fresh / "python", "-c", EVERY_NAME)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(fresh.parent)


def test_commands_without_extras_and_without_a_clone(fresh: Path, tmp_path: Path) -> None:
    assert "--precision" in run(tmp_path, fresh / "phs-server", "--help").stdout
    assert "ingest" in run(tmp_path, fresh / "phs-milvus", "--help").stdout
    for command, remedy in (
        (("phs-server", "--model", "model"), "pip install 'phs-milvus[server]'"),
        (("phs-milvus", "demo"), "run `make demo` in a clone"),
    ):
        done = run(tmp_path, fresh / command[0], *command[1:])
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and remedy in done.stderr, done.stderr


def test_the_installed_server_starts_with_the_server_extra(fresh: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The extra is not downloaded again: its packages are taken from the environment of these tests."""
    (site,) = fresh.parent.glob("lib/python*/site-packages")
    extra = site / "extra.pth"  # such a path is searched last, and its own .pth, of the editable install, is not read
    extra.write_text(sysconfig.get_path("purelib"))
    code = f"""
from phs_milvus import Encoder
from phs_server.app import ServerThread
from phs_server.config import Settings
import phs_server
with ServerThread(Settings(model={str(tiny_model)!r}, port=0)) as server, Encoder(server.address) as encoder:
    print(encoder.info.heads, phs_server.__file__)
"""
    try:
        done = run(tmp_path, fresh / "python", "-c", code)
    finally:
        extra.unlink()
    assert done.returncode == 0, done.stderr
    heads, file = done.stdout.split()
    assert heads == "4" and Path(file).is_relative_to(fresh.parent)
