"""The socket on which a server calls itself, seen by an attacker on the same machine: it leads past TLS and tokens."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_server import process
from phs_server.app import ServerThread
from phs_server.edge import supervisor
from tests.server.edge.support import eventually, failure, jpeg, open_channel, settings, silence
from tests.servers import REPO, ServerProcess, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no such socket elsewhere")

SELF = f"/{supervisor.SERVICE_NAME}/{supervisor.METHOD}"
GET_MODEL_INFO, ENCODE = "/phs.v1.FocusEncoder/GetModelInfo", "/phs.v1.FocusEncoder/Encode"
NOBODY = 65534

# As `process.run` is called, but the server calls itself every fifth of a second; SIGUSR1 makes its event loop hang.
IMPATIENT = """
import asyncio, signal, sys, time
from phs_server import process
from phs_server.app import Server
from phs_server.config import Settings
from phs_server.edge import supervisor
supervisor._EVERY_SECONDS, supervisor._TIMEOUT_SECONDS = 0.2, 2
start = Server.start
async def starting(self):
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, 3600)
    await start(self)
Server.start = starting
model, port, cert, key, ca = sys.argv[1:]
process.run(Settings(
    model=model, port=int(port), tls_cert=cert, tls_key=key, tls_client_ca=ca, max_connections=8, drain_seconds=1
))
"""

# An attacker with no rights beside an account: tries each socket file or name that it is given.
STRANGER = f"""
import os, socket, sys
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path.replace("@", chr(0), 1) if path.startswith("@") else path)
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""


def methods(*files: FileDescriptor) -> list[str]:
    """The path of every method that the files know."""
    services = [service for file in files for service in file.services_by_name.values()]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


EVERY_METHOD = methods(pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)


def descriptors(pid: int) -> dict[str, str]:
    """Paths of a process's descriptors, and what they lead to."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[str(entry)] = str(entry.readlink())
    return found


def listening_names(pid: int) -> list[str]:
    """The Unix sockets that a process listens on, as everybody reads them in /proc/net/unix; abstract ones with @."""
    inodes = {link[len("socket:[") : -1] for link in descriptors(pid).values() if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return [row[7] for row in rows if row[3] == "00010000" and row[6] in inodes and len(row) > 7]


def way_in(pid: int) -> str:
    """Where root and the server's own user find its socket: the descriptor of a socket file that is gone."""
    (found,) = (path for path, link in descriptors(pid).items() if link.endswith("/self (deleted)"))
    return found


def call(channel: grpc.Channel, path: str, message: bytes = b"") -> bytes:
    return channel.unary_unary(path)(message, timeout=20)


def await_log(server: ServerProcess, text: str) -> None:
    eventually(lambda: text in server.log or server.process.poll() is not None, seconds=90)
    assert text in server.log


@pytest.fixture(scope="module")
def tls(pem: Path) -> dict[str, Path]:
    """Flags of mutual TLS."""
    return {"tls_cert": pem / "server.pem", "tls_key": pem / "server.key", "tls_client_ca": pem / "ca.pem"}


@pytest.fixture(scope="module")
def guarded(
    tiny_model: Path, tls: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server that asks for a client certificate and a token, with reflection and one place of each kind."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("secret\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHS_REFLECTION", "1")
        server = ServerProcess(tiny_model, token_file=tokens, max_calls=1, max_streams=1, max_probes=1, **tls)
    try:
        await_log(server, "serving ")
        yield server
    finally:
        server.__exit__()


def open_mutual(server: ServerProcess, pem: Path) -> grpc.Channel:
    files = [(pem / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem")]
    return grpc.secure_channel(f"localhost:{server.port}", grpc.ssl_channel_credentials(*files))


def test_its_name_leads_nowhere(guarded: ServerProcess) -> None:
    (name,) = listening_names(guarded.process.pid)
    assert name.startswith("/"), "anybody can connect to an abstract name"
    with socket.socket(socket.AF_UNIX) as attacker, pytest.raises(FileNotFoundError):
        attacker.connect(name)
    assert not Path(name).parent.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect(guarded: ServerProcess) -> None:
    names = [*listening_names(guarded.process.pid), way_in(guarded.process.pid)]
    command = [sys.executable, "-c", STRANGER, *names]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert tried.stdout.split() == ["FileNotFoundError", "PermissionError"]


@pytest.mark.parametrize("path", EVERY_METHOD)
def test_who_gets_in_can_call_no_method(guarded: ServerProcess, path: str) -> None:
    """With a token and with an open end of the stream: nothing is read, and no place is taken."""
    with open_channel(f"unix:{way_in(guarded.process.pid)}") as channel, ExitStack() as after:
        gate = threading.Event()
        after.callback(gate.set)
        metadata = (("authorization", "Bearer secret"),)
        for _ in range(3):
            stream = channel.stream_stream(path)(silence(gate), timeout=20, metadata=metadata)
            assert failure(lambda stream=stream: list(stream)).code() is grpc.StatusCode.UNIMPLEMENTED
        message = pb.EncodeRequest(image=jpeg()).SerializeToString() if path == ENCODE else b""
        assert failure(lambda: call(channel, path, message)).code() is grpc.StatusCode.UNIMPLEMENTED
        assert call(channel, SELF) == b""


def test_the_port_is_as_before(guarded: ServerProcess, pem: Path) -> None:
    with open_mutual(guarded, pem) as channel:
        ask = channel.unary_unary(GET_MODEL_INFO)
        assert failure(lambda: ask(b"", timeout=20)).code() is grpc.StatusCode.UNAUTHENTICATED
        answer = ask(b"", timeout=20, metadata=(("authorization", "Bearer secret"),))
        assert pb.ModelInfo.FromString(answer).heads == 4
        assert failure(lambda: call(channel, SELF)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_server_that_nobody_supervises_has_no_such_socket(tiny_model: Path) -> None:
    before = listening_names(os.getpid())
    with ServerThread(settings(tiny_model)):
        assert listening_names(os.getpid()) == before


@pytest.mark.parametrize("folder", ["missing", "of-a-name-too-long-for-an-address" * 4])
def test_where_there_can_be_no_such_socket_a_warning_says_so(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_FOLDER", str(tmp_path / "no-memory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    if folder != "missing":
        (tmp_path / folder).mkdir()

    async def listen() -> supervisor.PrivateSocket | None:
        return supervisor.listen(grpc.aio.server())

    assert asyncio.run(listen()) is None
    assert "nothing ends this server if it hangs" in caplog.text
    assert not [*tmp_path.glob("*/*")]


def test_the_supervisor_works_behind_mutual_tls(tiny_model: Path, tls: dict[str, Path], tmp_path: Path) -> None:
    """Beside an attacker who takes all connections of the port: nobody ends the server until it hangs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")])}
    port, log = free_port(), tmp_path / "log"
    command = [sys.executable, "-c", IMPATIENT, str(tiny_model), str(port), *map(str, tls.values())]
    with log.open("w") as stderr:
        server = subprocess.Popen(command, env=environment, stderr=stderr)
    try:
        eventually(lambda: "serving " in log.read_text() or server.poll() is not None, seconds=90)
        until = time.monotonic() + 4  # 20 calls, of which three failed ones in a row end the process
        with ExitStack() as held:
            while time.monotonic() < until:
                assert server.poll() is None, log.read_text()
                for _ in range(20):
                    held.enter_context(socket.create_connection(("127.0.0.1", port)))
                time.sleep(0.1)
        server.send_signal(signal.SIGUSR1)
        assert server.wait(60) == process.BROKEN, log.read_text()
        assert len(re.findall("CRITICAL.*does not answer its own calls any more", log.read_text())) == 1
    finally:
        server.kill()
        server.wait()
