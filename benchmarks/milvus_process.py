"""What a Milvus server that runs on this machine takes of it, for `benchmarks.capacity` (Linux)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

IDLE_CORES = 0.35  # what a server uses that has nothing to do, and some


class Memory(tuple[int, int]):
    """MiB of a process: anonymous, and of mapped files."""

    def over(self, other: Memory, count: int) -> str:
        """Bytes for each of `count` rows above another measurement."""
        parts = [f"{(a - b) * 2**20 / count:,.0f}" for a, b in zip(self, other, strict=True)]
        return f"{parts[0]} anonymous, {parts[1]} of files"


class Server:
    """The one process named milvus on this machine."""

    def __init__(self) -> None:
        found = [path.parent for path in Path("/proc").glob("[0-9]*/comm") if path.read_text().strip() == "milvus"]
        if len(found) != 1:
            raise SystemExit(f"expected one process named milvus on this machine, found {len(found)}")
        self._process = found[0]
        self._folder = (self._process / "exe").resolve().parents[1]  # it runs from its data folder's bin

    def memory(self) -> Memory:
        """Resident, at present."""
        lines = dict(line.split(":", 1) for line in (self._process / "status").read_text().splitlines())
        return Memory(int(lines[key].split()[0]) // 1024 for key in ("RssAnon", "RssFile"))

    def wait_until_idle(self, at_most_s: float = 150) -> None:
        """Until the process takes hardly any processor time for 10 seconds."""
        end, idle, before = time.perf_counter() + at_most_s, 0, self._processor_seconds()
        while idle < 2:
            if time.perf_counter() > end:
                print(f"the server was still busy after {at_most_s:.0f} s: its memory is above that of one at rest")
                return
            time.sleep(5)
            now = self._processor_seconds()
            idle = idle + 1 if now - before < 5 * IDLE_CORES else 0
            before = now

    def _processor_seconds(self) -> float:
        fields = (self._process / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def disk(self, count: int) -> str:
        """Bytes a row, by folder of the server's storage."""
        sizes: dict[str, int] = {}
        for path in (self._folder / "data").rglob("*"):
            if path.is_file():
                kind = path.relative_to(self._folder / "data").parts[0]
                sizes[kind] = sizes.get(kind, 0) + 512 * path.stat().st_blocks
        return ", ".join(f"{kind} {size / count:,.0f}" for kind, size in sorted(sizes.items()))


class Peak:
    """The most memory while a block runs, looked at twice a second."""

    def __init__(self, server: Server) -> None:
        self._server, self._end = server, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.highest = server.memory()

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.5):
            self.highest = max(self.highest, self._server.memory(), key=sum)
