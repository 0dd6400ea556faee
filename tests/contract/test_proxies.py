"""A proxy in the environment, as company networks and Docker builds have it: a real socket that notes who comes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import CollectionError, EncoderUnavailable
from phs_milvus.contract.proxies import channel_options, proxy_note
from phs_milvus.milvus.connection import close, connect
from tests.servers import free_port

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


class Proxy:
    """Takes connections, keeps their first line, and hangs up."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self.requests.append(connection.recv(4096).decode("latin-1").partition("\r\n")[0])
                connection.close()
        except OSError:
            return

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(params=[*VARIABLES, "all"])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in one of the variables that gRPC reads, or in all, and no exception from it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    proxy = Proxy()
    for name in VARIABLES if request.param == "all" else [request.param]:
        monkeypatch.setenv(name, f"http://me:secret@{proxy.address}")
    yield proxy
    proxy.close()


def test_this_machine_is_reached_past_the_proxy(proxy: Proxy, address: str, tmp_path: Path) -> None:
    port = address.rpartition(":")[2]
    for spelt in (address, f"localhost:{port}", f"dns:///localhost:{port}", f"ipv4:{address}", [address, address]):
        with Encoder(spelt) as encoder:
            assert encoder.info.heads == 4
    client = connect(str(tmp_path / "lite.db"))
    assert client.list_collections() == []
    close(client)
    assert proxy.requests == []


def test_another_host_is_reached_through_it_and_the_error_says_so(proxy: Proxy) -> None:
    with Encoder("milvus.invalid:1", timeout=10) as encoder, pytest.raises(EncoderUnavailable) as caught:
        encoder.info  # noqa: B018
    assert "through the proxy " in str(caught.value) and f"=http://***@{proxy.address}" in str(caught.value)
    assert "no_proxy=milvus.invalid" in str(caught.value) and "secret" not in str(caught.value)
    assert "CONNECT milvus.invalid:1 HTTP/1.1" in proxy.requests
    with pytest.raises(CollectionError, match=r"no Milvus at http://milvus\.invalid:1 through the proxy ") as refused:
        connect("http://milvus.invalid:1", timeout=3)
    assert "secret" not in str(refused.value)


def test_a_milvus_server_here_is_asked_without_it(proxy: Proxy) -> None:
    port = free_port()
    with pytest.raises(CollectionError) as caught:
        connect(f"http://127.0.0.1:{port}", timeout=2)
    assert "proxy" not in str(caught.value) and proxy.requests == []


@pytest.mark.parametrize(
    ("target", "past"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("[::ffff:127.0.0.1]:1", True),
        ("0.0.0.0:1", True),
        ("LOCALHOST:1", True),
        ("phs.localhost:1", True),
        ("localhost", True),
        ("10.0.0.1:1,10.0.0.2:1", True),  # of a list, gRPC would ask for a host of that name
        ("10.0.0.1:1", False),
        ("localhost.example.org:1", False),
        ("no-such-host.invalid:1", False),
        ("", False),
    ],
)
def test_who_is_this_machine(monkeypatch: pytest.MonkeyPatch, target: str, past: bool) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    assert (channel_options(target) == {"grpc.enable_http_proxy": 0}) is past
    assert (proxy_note(target) == "") is past


def test_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "example.org, 10.0.0.7")
    assert proxy_note("db.example.org:1") == proxy_note("10.0.0.7:1") == ""
    assert proxy_note("db.example.com:1") != ""
