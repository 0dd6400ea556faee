"""`python -m phs_server.probe`, the health check of containers, against real servers."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from phs_server import probe
from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.servers import free_port


def test_ready_and_alive(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    host, _, port = address.rpartition(":")
    for name in ("readiness", "liveness"):
        assert probe.main([name, "--host", host, "--port", port]) == 0
        assert capsys.readouterr().out == f"{name}: SERVING\n"


def test_it_asks_on_loopback_where_the_server_listens_everywhere(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    assert probe.main(["--host", "0.0.0.0", "--port", address.rpartition(":")[2]]) == 0


def test_no_server_is_an_answer_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert probe.main(["--port", str(free_port()), "--timeout", "1"]) == 1
    output = capsys.readouterr().out
    assert output.startswith("readiness: no answer (") and output.count("\n") == 1


def test_not_serving_is_told_from_serving(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = health.HealthServicer()
    statuses.set("readiness", health_pb2.HealthCheckResponse.NOT_SERVING)
    statuses.set("liveness", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(statuses, server)
    port = str(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        assert probe.main(["--port", port]) == 1
        assert probe.main(["liveness", "--port", port]) == 0
    finally:
        server.stop(None).wait()
    assert capsys.readouterr().out == "readiness: NOT_SERVING\nliveness: SERVING\n"


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and server.pem and client.pem that it signed, for names that are not this machine's."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here to make certificates with")
    folder = tmp_path_factory.mktemp("pem")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:*.phs.example")
    for name in ("server", "client"):
        openssl("req", *new_key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


def test_tls_and_mutual_tls(
    tiny_model: Path, pem: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what a container has: the server's own settings, whatever name its certificate is for."""
    tls = {"tls_cert": str(pem / "server.pem"), "tls_key": str(pem / "server.key")}
    secure = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=1, **tls)
    for name, value in tls.items():
        monkeypatch.setenv(f"PHS_{name.upper()}", value)
    with ServerThread(secure) as server:
        monkeypatch.setenv("PHS_PORT", server.address.rpartition(":")[2])
        assert probe.main([]) == 0
        monkeypatch.setenv("PHS_TLS_CERT", str(pem / "client.pem"))
        assert probe.main([]) == 1, "another certificate than the server's is not trusted"
        monkeypatch.setenv("PHS_TLS_CERT", tls["tls_cert"])
    with ServerThread(replace(secure, tls_client_ca=str(pem / "ca.pem"))) as server:
        monkeypatch.setenv("PHS_PORT", server.address.rpartition(":")[2])
        assert probe.main(["--timeout", "2"]) == 1
        monkeypatch.setenv("PHS_ENCODER_CERT", str(pem / "client.pem"))
        monkeypatch.setenv("PHS_ENCODER_KEY", str(pem / "client.key"))
        assert probe.main([]) == 0
    monkeypatch.setenv("PHS_TLS_CERT", str(pem / "missing.pem"))
    with pytest.raises(SystemExit) as usage:
        probe.main([])
    assert usage.value.code == 2 and "missing.pem" in capsys.readouterr().err
