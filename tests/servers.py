"""Servers in processes of their own, for what a thread cannot show: signals, kill -9, exit codes, memory."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

REPO = Path(__file__).resolve().parents[1]
START_SECONDS = 90.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, nor is given to other workers of pytest-xdist.

    From a range of the worker's own below the ports that the kernel hands out, which another process could get before
    the port is used.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for port in random.sample(range(10_000 + 1000 * worker, 11_000 + 1000 * worker), 1000):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


def health(address: str, service: str = "", timeout: float = 5) -> str:
    """The name of a serving status, or of the gRPC code where there is no answer."""
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return error.code().name
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class ServerProcess:
    """`python -m phs_server` on a loopback port; killed on exit if it still runs.

    Args:
        before: called in the new process before it runs.
        flags: settings, as keyword arguments.
    """

    def __init__(
        self, model: Path, port: int | None = None, before: Callable[[], None] | None = None, **flags: object
    ) -> None:
        self._before = before
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "phs_server", "--model", str(model), "--port", str(self.port)]
        for name, value in flags.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        paths = [str(REPO), str(REPO / "server"), os.environ.get("PYTHONPATH", "")]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        # A file, not a pipe: nobody reads while the server runs, and a full pipe would stop it.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = self._launch()

    def __enter__(self) -> ServerProcess:
        self.wait_until_ready()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._log.close()

    def restart(self) -> None:
        """Starts again on the same port; the process before must have ended."""
        assert self.process.poll() is not None
        self.process = self._launch()

    def wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while health(self.address) != "SERVING":
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log}")
            assert time.monotonic() < until, "the server did not become ready"
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = 30) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    @property
    def log(self) -> str:
        """What all processes so far wrote to stderr."""
        self._log.seek(0)
        return self._log.read()

    @property
    def resident_mib(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            preexec_fn=self._before,
        )
