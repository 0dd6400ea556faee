"""The server as a process: silent connections, floods of log lines, signals at any moment, a hang."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_server import process
from phs_server.edge import supervisor
from tests.hostile.http2 import HEALTH, SERVICE, Client, message
from tests.servers import REPO, ServerProcess, free_port, health

GARBAGE = message(b"\xff" * 40)
HIDDEN, HEADS = 48, 4
MOST_LOG = 2**20


def model_info(address: str) -> int:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return pb_grpc.FocusEncoderStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=20).heads


def half_open(server: ServerProcess) -> list[object]:
    """Connections without a request: silent, half of a preface, half of a TLS handshake, an idle HTTP/2 one."""
    raw = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
    raw[1].sendall(b"PRI * HTTP/2.0\r\n")
    raw[2].sendall(b"\x16\x03\x01")
    return [*raw, Client(server.address)]


def test_the_end_waits_for_no_connection_without_a_request(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, drain_seconds=60) as server:
        held = half_open(server)
        assert server.terminate(timeout=30) == 0, "60 seconds would be the drain time"
        assert len(held) == 4 and "Traceback" not in server.log


def test_silent_connections_beyond_the_open_files_lock_nobody_out(tiny_model: Path) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 600))

    with ServerProcess(tiny_model, before=few_files, handshake_seconds=5) as server:
        held = []
        for _ in range(900):
            try:
                held.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            except OSError:
                break
        until = time.monotonic() + 60
        while True:
            try:
                assert model_info(server.address) == HEADS
                break
            except grpc.RpcError:
                assert time.monotonic() < until, f"nobody gets in beside {len(held)} silent connections"
        for connection in held:
            connection.close()


def test_connections_of_the_address_that_has_most_are_ended(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, max_connections=40) as server:
        good = Client(server.address)
        hogs = [Client(server.address, source="127.0.0.2") for _ in range(39)]
        assert good.wait(lambda: sum(hog.closed for hog in hogs) >= 10)
        assert not good.closed and model_info(server.address) == HEADS
        for client in (good, *hogs):
            client.close()


def flood(server: ServerProcess, connections: int) -> None:
    """Bad requests of every kind, a hundred on each connection."""
    paths = [f"{HEALTH}Check", f"{HEALTH}Watch", f"{SERVICE}Encode", f"{SERVICE}EncodeStream", f"{SERVICE}Rerank"]
    paths += [f"{SERVICE}NoSuchMethod", "/no.such/Service", "/grpc.reflection.v1alpha.ServerReflection/x", "no path"]
    for _ in range(connections):
        client = Client(server.address)
        streams = [client.open(random.choice(paths)) for _ in range(100)]
        for stream in streams:
            client.send(stream, GARBAGE, end=True)
        client.wait(lambda client=client: client.closed or len(client.ended) == 100, 10)
        client.close()


def test_bad_requests_write_a_bounded_log(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, log_level="info") as server:
        flood(server, 20)
        assert model_info(server.address) == HEADS
        assert len(server.log) < MOST_LOG


def test_a_log_that_nobody_reads_stops_nothing(tiny_model: Path) -> None:
    port = free_port()
    # Debug lines, so that the pipe is full soon: 64 KiB.
    flags = ["--model", str(tiny_model), "--port", str(port), "--log-level", "debug", "--drain-seconds", "5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")])}
    command = [sys.executable, "-m", "phs_server", *flags]
    unread = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment)
    try:
        address, until = f"127.0.0.1:{port}", time.monotonic() + 90
        while health(address) != "SERVING":
            assert unread.poll() is None and time.monotonic() < until
        for _ in range(400):
            assert health(address, "nonsense") == "NOT_FOUND"
        assert model_info(address) == HEADS
        unread.send_signal(signal.SIGTERM)
        assert unread.wait(30) == 0
    finally:
        unread.kill()
        unread.wait()
        unread.stderr.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("library", ["_multiarray_umath", "cygrpc", "libtorch_cpu", "tokenizers", "port"])
def test_a_signal_while_starting_ends_in_status_0_and_without_a_traceback(
    tiny_model: Path, number: signal.Signals, library: str
) -> None:
    """As soon as a library is loaded, in the order of the start; and when the port is open."""
    server = ServerProcess(tiny_model)
    try:
        until, maps = time.monotonic() + 60, Path(f"/proc/{server.process.pid}/maps")
        while library not in maps.read_text() and not (library == "port" and health(server.address) != "UNAVAILABLE"):
            assert server.process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0, server.log
        assert "Traceback" not in server.log and "terminate called" not in server.log
    finally:
        server.__exit__()


def test_a_signal_while_the_model_computes_ends_in_status_0(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, drain_seconds=1) as server:
        weights = np.random.default_rng(0).random((4000, HEADS), np.float32) + 0.5
        states = np.ones((4000, 2, HIDDEN), np.float16)
        request = wire.rerank_request(np.ones((4000, HIDDEN), np.float32), weights, states)
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(server.address, options) as channel:
            call = pb_grpc.FocusEncoderStub(channel).Rerank.future(request, timeout=60)
            time.sleep(1)
            assert server.terminate(timeout=30) == 0
            call.cancel()
        assert "terminate called" not in server.log


def test_three_self_calls_without_an_answer_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because nobody listens where it calls."""
    for name, value in (("_EVERY_SECONDS", 0.05), ("_TIMEOUT_SECONDS", 0.2)):
        monkeypatch.setattr(supervisor, name, value)
    failed = threading.Event()
    watching = supervisor.Supervisor(f"127.0.0.1:{free_port()}", failed.set)
    watching.start()
    assert failed.wait(30)


HANG = """
import sys, threading, time
from phs_server import process
from phs_server.edge import supervisor
supervisor._EVERY_SECONDS, supervisor._TIMEOUT_SECONDS = 0.5, 0.5
from phs_server.app import Server
start = Server.start
async def hanging(self):
    await start(self)
    import asyncio
    asyncio.get_running_loop().call_later(2, time.sleep, 3600)
Server.start = hanging
from phs_server.config import Settings
process.run(Settings(model=sys.argv[1], port=0))
"""


def test_a_hang_of_the_event_loop_ends_the_process_with_a_status_and_one_line(tiny_model: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")])}
    command = [sys.executable, "-c", HANG, str(tiny_model)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == process.BROKEN, done.stderr
    assert len(re.findall("CRITICAL.*does not answer its own calls any more", done.stderr)) == 1
