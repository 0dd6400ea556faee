"""Health, reflection, start, stop by SIGTERM, and what ends a start."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import ModelError, PortTaken
from phs_server.app import ServerThread
from tests.server.edge.support import (
    HEADS,
    eventually,
    failure,
    held_open,
    jpeg,
    metrics,
    open_channel,
    settings,
    slow_png,
)
from tests.servers import REPO, ServerProcess, free_port, health


def test_health_names(address: str) -> None:
    assert [health(address, name) for name in ("", "readiness", "liveness", "phs.v1.FocusEncoder")] == ["SERVING"] * 4
    assert health(address, "nonsense") == "NOT_FOUND"


def test_reflection_is_there_where_it_is_asked_for(address: str, channel: grpc.Channel, tiny_model: Path) -> None:
    def names(channel: grpc.Channel) -> set[str]:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=20)
        return {service.name for service in answer.list_services_response.service}

    assert failure(lambda: names(channel)).code() is grpc.StatusCode.UNIMPLEMENTED
    with ServerThread(settings(tiny_model, reflection=True)) as server, open_channel(server.address) as telling:
        assert names(telling) >= {"phs.v1.FocusEncoder", "grpc.health.v1.Health"}


def test_while_loading_alive_but_not_ready_and_stopped_by_sigterm_all_the_same(deit: Path) -> None:
    """DeiT takes long enough to load to be seen loading."""
    server = ServerProcess(deit)
    try:
        eventually(lambda: health(server.address, "liveness") == "SERVING", 60)
        assert health(server.address) == "NOT_SERVING"
        with open_channel(server.address) as channel:
            error = failure(lambda: pb_grpc.FocusEncoderStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=5))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "loading" in error.details()
        assert server.terminate() == 0
    finally:
        server.__exit__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_turns_health_off_and_callers_do_not_hang(tiny_model: Path) -> None:
    before = set(threading.enumerate())
    with ServerThread(settings(tiny_model)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
        (worker,) = [t for t in set(threading.enumerate()) - before if t.name.startswith("encode")]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
        calls = [stub.Encode.future(pb.EncodeRequest(image=jpeg()), timeout=20) for _ in range(3)]
        # The exception is raised at the thread's next step: the first of them may still be answered.
        codes = [call.code() for call in calls]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE} and codes.count(grpc.StatusCode.OK) < 3
        eventually(lambda: health(server.address) == "NOT_SERVING")
        assert health(server.address, "liveness") == "NOT_SERVING"
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(tiny_model: Path) -> None:
    """Long before drain_seconds, which an open watch or stream would use up."""
    metrics_port, image = free_port(), slow_png()
    flags = {"decode_threads": 1, "drain_seconds": 600, "metrics_port": metrics_port}
    with ServerProcess(tiny_model, **flags) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gate = threading.Event()
        stream = stub.EncodeStream(held_open(gate))
        assert next(stream).id == 0
        accepted = [stub.Encode.future(pb.EncodeRequest(image=image), timeout=60) for _ in range(3)]
        # In this order: a call that ends between the two is counted late, and never twice.
        eventually(
            lambda: (
                sum(call.done() for call in accepted) + metrics(metrics_port)["phs_in_flight_bytes"] // len(image) == 3
            )
        )
        assert server.terminate(timeout=120) == 0
        assert [call.result().width for call in accepted] == [9000] * 3
        assert failure(lambda: next(stream)).code() is grpc.StatusCode.UNAVAILABLE
        assert (
            failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=5)).code()
            is grpc.StatusCode.UNAVAILABLE
        )
        gate.set()
        watch.cancel()


def test_a_taken_port_is_an_error_that_names_it(address: str, tiny_model: Path) -> None:
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(PortTaken, match=f"127.0.0.1:{port}: is the port taken"),
        ServerThread(settings(tiny_model, port=port)),
    ):
        pass


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6_hosts(tiny_model: Path) -> None:
    with ServerThread(settings(tiny_model, host="::1")) as server, open_channel(server.address) as channel:
        assert server.address.startswith("[::1]:")
        assert pb_grpc.FocusEncoderStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=10).heads == HEADS


def test_unknown_model_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config.json; it must hold"), ServerThread(settings(tmp_path)):
        pass
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")]),
    }
    command = [sys.executable, "-m", "phs_server", "--port", "0", "--model", "nobody/no-such-model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "phs-server: cannot load model 'nobody/no-such-model': there is no such directory here" in done.stderr
    assert "Pass a directory that holds config.json" in done.stderr
