"""Three servers, of which one is slowed and one is stopped or killed: what is lost, and images/s against the ideal sum.

    python -m benchmarks.balancing

The servers are processes of their own. They share this machine's cores, so each is kept to a share of one core's time,
as if it had a machine of its own: it is stopped for a moment (SIGSTOP) whenever it has used more. The ideal is the sum
of what the servers do alone, with the same shares.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.common import REPO, photos, print_table
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.types import Encoding
from tests.servers import ServerProcess

_TICK = 0.01
_PER_SECOND = os.sysconf("SC_CLK_TCK")
IN_FLIGHT = 32


class Governor:
    """Keeps a process to a share of one core's time. `stop` stops it wholly, `go` ends that."""

    def __init__(self, pid: int, share: float) -> None:
        self._pid, self._share, self._ended = pid, share, threading.Event()
        self._halted = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._halted = True

    def go(self) -> None:
        self._halted = False

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _used(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _PER_SECOND

    def _run(self) -> None:
        running, credit, before = True, 0.0, (time.monotonic(), self._used())
        while not self._ended.wait(_TICK):
            try:
                now = (time.monotonic(), self._used())
            except OSError:
                return  # it was killed
            credit += self._share * (now[0] - before[0]) - (now[1] - before[1])
            credit, before = min(credit, self._share * 0.1), now
            wanted = credit > 0 and not self._halted
            if wanted != running:
                os.kill(self._pid, signal.SIGCONT if wanted else signal.SIGSTOP)
                running = wanted
        if not running:
            os.kill(self._pid, signal.SIGCONT)


@contextmanager
def governed(servers: Sequence[ServerProcess], shares: Sequence[float]) -> Iterator[list[Governor]]:
    governors = [Governor(server.process.pid, share) for server, share in zip(servers, shares, strict=True)]
    try:
        yield governors
    finally:
        for governor in governors:
            governor.end()


def rate(
    addresses: Sequence[str],
    files: Sequence[bytes],
    seconds: float,
    events: Sequence[tuple[float, Callable[[], None]]] = (),
) -> tuple[float, int, int]:
    """(images/s, images sent, images lost or answered with an error), with `events` at their times."""
    timers = [threading.Timer(after, do) for after, do in events]
    sent = good = 0
    until = time.monotonic() + seconds

    def feed() -> Iterator[bytes]:
        nonlocal sent
        while time.monotonic() < until:
            yield files[sent % len(files)]
            sent += 1

    with Encoder(list(addresses), timeout=60) as encoder:
        encoder.fetch_info()
        for timer in timers:
            timer.start()
        started = time.monotonic()
        until = started + seconds
        for result in encoder.encode_many(feed(), in_flight=IN_FLIGHT):
            good += isinstance(result, Encoding)
        return good / (time.monotonic() - started), sent, sent - good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="per row (default: %(default)g)")
    parser.add_argument("--share", type=float, default=0.2, help="of one core, for a server (default: %(default)g)")
    seconds, share = (arguments := parser.parse_args()).seconds, arguments.share
    files = photos(16)
    shares = [share, share, share / 4]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ServerProcess(REPO / "assets/demo_model", precision="float32")) for _ in range(3)
        ]
        addresses = [server.address for server in servers]
        alone = []
        for server, part in zip(servers, shares, strict=True):
            with governed([server], [part]):
                alone.append(rate([server.address], files, seconds)[0])
        print("alone, images/s:", *(f"{value:.2f}" for value in alone))
        rows = []

        def measure(name: str, ideal: float, *events: tuple[float, Callable[[list[Governor]], None]]) -> None:
            with governed(servers, shares) as governors:
                due = [(at, lambda do=do: do(governors)) for at, do in events]  # type: ignore[misc]
                got, sent, lost = rate(addresses, files, seconds, due)
            rows.append([name, sent, lost, f"{got:.2f}", f"{ideal:.2f}", f"{got / ideal:.2f}"])
            print(*rows[-1], flush=True)

        third = seconds / 3
        whole, without = sum(alone), sum(alone) - alone[1]
        measure("one slowed to a quarter", whole)
        measure("and one stopped from a third to two thirds", (2 * whole + without) / 3,
                (third, lambda all: all[1].stop()), (2 * third, lambda all: all[1].go()))  # fmt: skip
        measure("and one killed after a third", (whole + 2 * without) / 3, (third, lambda _: servers[1].kill()))
        print_table("Balancing", ["servers", "images", "lost", "images/s", "ideal sum", "ratio"], rows)


if __name__ == "__main__":
    main()
