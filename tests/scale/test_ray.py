"""Encoding by a real local Ray; run by `make test-scale`, because Ray is in no other environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import EncoderError, InvalidInput
from phs_milvus.contract.images import load_image
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.encode import EncodeReport, encode
from phs_milvus.scale.export import export
from phs_milvus.scale.load import load
from phs_milvus.scale.verify import verify
from tests.scale.support import table_at, unit
from tests.servers import ServerProcess

pytest.importorskip("ray", reason="Ray is not installed; make test-scale")

MakeImages = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_model) as server:
        yield server


def check_output(photos: Path, output: Path, bad: set[str]) -> None:
    """Every file below `photos` is in the parts or, if bad, in the error table, and nothing is there twice."""
    files = {str(path.relative_to(photos)): path for path in photos.rglob("*.jpg")}
    rows = table_at(output / "parts")
    assert set(rows) == set(files) - bad
    errors = table_at(output / "errors") if bad else {}
    assert set(errors) == bad and all(row["error"] == "ImageError" for row in errors.values())
    assert all(rows[key]["digest"] == load_image(files[key]).digest for key in rows)


def workers() -> list[int]:
    """Process ids of the actors of this test's Ray that are busy with a part or ready for one."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    mine = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parent = {int(pid): int(ppid) for pid, ppid in (line.split() for line in mine.splitlines()[1:])}

    def is_mine(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parent.get(pid, 0)
        return False

    found = [int(line.split()[0]) for line in listed.splitlines() if "ray::MapWorker" in line]
    return [pid for pid in found if is_mine(pid)]


def test_a_worker_is_killed(tmp_path: Path, server: ServerProcess, make_images: MakeImages) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    make_images(photos / "a", 150)
    make_images(photos / "b", 90, seed=1)
    bad = {"a/image-0007.jpg", "b/image-0070.jpg"}
    for name in bad:
        (photos / name).write_bytes(b"no picture")
    killed: list[int] = []

    def kill(report: EncodeReport) -> None:
        if report.parts == 3:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    opener = partial(Encoder, server.address)
    report = encode(str(photos), str(output), opener, workers=2, cpus_per_worker=0.5, rows_per_part=16, progress=kill)
    assert killed and (report.found, report.encoded, report.failed, report.parts) == (240, 238, 2, 15)
    check_output(photos, output, bad)
    make_images(photos / "c", 5, seed=2)
    again = encode(str(photos), str(output), opener, workers=1, cpus_per_worker=0.5)
    assert (again.found, again.finished_before, again.encoded, again.parts) == (245, 240, 5, 1)
    check_output(photos, output, bad)


def test_the_command_is_killed(tmp_path: Path, server: ServerProcess, make_images: MakeImages) -> None:
    """kill -9 of the whole command, and the same command again."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    make_images(photos, 120)
    command = [sys.executable, "-m", "phs_milvus", "scale", "encode", str(photos), str(output)]
    command += ["--encoder", server.address, "--workers", "2", "--cpus", "0.5", "--rows-per-part", "8"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not list(output.glob("parts/*.parquet")):
            assert first.poll() is None and time.monotonic() < until
            time.sleep(0.02)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    there = len(table_at(output / "parts"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    before = int(done.stdout.partition(" finished before")[0].rpartition(" ")[2])
    assert there <= before <= 120 and f"{120 - before} encoded into" in done.stdout
    check_output(photos, output, set())


def test_what_cannot_be_done_is_said(tmp_path: Path, tiny_model: Path, make_images: MakeImages) -> None:
    make_images(tmp_path / "photos", 4)
    with ServerProcess(tiny_model) as server:
        opener = partial(Encoder, server.address, timeout=2)
        places = str(tmp_path / "photos"), str(tmp_path / "out")
        with pytest.raises(InvalidInput, match="1 or more"):
            encode(*places, opener, workers=0)
        server.kill()
        with pytest.raises(EncoderError):
            encode(*places, opener, workers=1, cpus_per_worker=0.5)
    assert not (tmp_path / "out/parts").exists()


def test_a_new_model_takes_over(
    tmp_path: Path, server: ServerProcess, tiny_model: Path, milvus_uri: str, make_images: MakeImages
) -> None:
    """The recipe of docs/SCALE.md: export the keys, encode them by the new model, load, swap the alias. Searches by a
    program that opened the alias before go on all the time."""
    from phs_milvus.milvus.aliases import swap_alias
    from phs_milvus.search.focused import FocusedSearch
    from tests.checkpoints import save_checkpoint

    photos = tmp_path / "photos"
    paths = make_images(photos, 40)
    new_model = save_checkpoint("dinov2", tmp_path / "new_model", seed=5)
    client = connect(milvus_uri)
    with Encoder(server.address) as old_encoder, ServerProcess(new_model) as new_server:
        encode(str(photos), str(tmp_path / "old"), partial(Encoder, server.address), workers=1, cpus_per_worker=0.5)
        old = FocusedCollection.create(client, "photos_old", old_encoder.info)
        load([str(tmp_path / "old")], old)
        swap_alias(client, "photos", "photos_old")
        running = FocusedCollection.open(client, "photos")
        search = FocusedSearch(running, old_encoder)
        stop, answers = threading.Event(), []

        def go_on() -> None:
            while not stop.is_set():
                answers.append(next(iter(search.search(paths[0], limit=1))).id)
                time.sleep(0.2)  # Ray has to start beside it

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            export(old, str(tmp_path / "export"))
            opener = partial(Encoder, new_server.address)
            keys = [str(tmp_path / "export")]
            encode(str(photos), str(tmp_path / "new"), opener, keys=keys, workers=1, cpus_per_worker=0.5)
            with opener() as new_encoder:
                new = FocusedCollection.create(client, "photos_new", ModelRecord.of(new_encoder.info, "int8"))
                load([str(tmp_path / "new")], new)
                assert verify([str(tmp_path / "new")], new).good
                assert swap_alias(client, "photos", "photos_new") == "photos_old"
                opened = FocusedCollection.open(client, "photos")
                (hit,) = FocusedSearch(opened, new_encoder).search(paths[3], limit=1)
                assert hit.id == paths[3].name
                row = table_at(tmp_path / "new/parts")[paths[3].name]
                assert unit(row) @ new_encoder.encode(paths[3]).embedding == pytest.approx(1, abs=1e-4)
        finally:
            stop.set()
            thread.join()
        assert len(answers) > 3 and set(answers) == {paths[0].name}
        assert running.name == "photos_old"
    client.drop_alias("photos")
    client.drop_collection("photos_old"), client.drop_collection("photos_new")
    close(client)
