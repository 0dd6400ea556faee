"""The processes that a server decodes in end with it, however it ends, and say nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from phs_milvus.client.encoder import Encoder
from tests.hostile.test_images import HANGS, runs
from tests.servers import ServerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and runs(int(folder.name)):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_server(number: signal.Signals, tiny_model: Path, make_images, tmp_path: Path) -> None:
    """SIGTERM goes to the children as well, as a service manager sends it, while the server still drains."""
    with ServerProcess(tiny_model, precision="float32", drain_seconds=5) as server, Encoder(server.address) as encoder:
        children = children_of(server.process.pid)
        assert len(children) >= 2
        image = make_images(tmp_path, 1)[0]
        encoder.encode(image)
        if number == signal.SIGTERM:
            for child in children:
                os.kill(child, number)
            encoder.encode(image)
        server.process.send_signal(number)
        assert server.process.wait(30) == (0 if number == signal.SIGTERM else -number)
        until = time.monotonic() + HANGS
        while any(map(runs, children)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(runs, children))
        assert "Traceback" not in server.log
