"""The base of every web server: the port, who may call, how much, and how a failure is answered."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from phs_milvus.contract.errors import EncoderUnavailable, InvalidInput, ModelMismatch, PortTaken
from phs_milvus.web import places, serving
from phs_milvus.web.access import Access
from phs_milvus.web.app import make_app
from phs_milvus.web.bodies import read_body
from phs_milvus.web.serving import WebServer
from phs_milvus.web.settings import WebSettings
from tests.web.support import raw, request

_MOST = 100_000
_gate = threading.Event()


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await read_body(request))


async def _fail(request: Request) -> Response:
    errors = {
        "field": InvalidInput("must be small", "size"),
        "model": ModelMismatch("another model"),
        "away": EncoderUnavailable("nobody there"),
        "bug": ZeroDivisionError("secret"),
    }
    raise errors[request.path_params["kind"]]


async def _wait(_: Request) -> Response:
    await run_in_threadpool(_gate.wait, 20)
    return JSONResponse({})


def serve(settings: WebSettings) -> WebServer:
    routes = [
        Route("/echo", _echo, methods=["POST"]),
        Route("/fail/{kind}", _fail),
        Route("/wait", _wait),
    ]
    return WebServer(make_app(routes, Access(settings), settings), settings)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serve(WebSettings(port=0, max_body_bytes=_MOST, allowed_hosts=("photos.example",))) as server:
        yield server.port


@pytest.mark.parametrize(
    ("kind", "status", "field"), [("field", 400, "size"), ("model", 409, None), ("away", 503, None), ("bug", 500, None)]
)
def test_a_failure_is_a_problem_that_names_the_field(port: int, kind: str, status: int, field: str | None) -> None:
    answer = request(port, f"/fail/{kind}")
    assert answer.status == answer.json["status"] == status and answer.json.get("field") == field
    assert answer.headers["content-type"] == "application/problem+json" and b"secret" not in answer.body
    assert ("retry-after" in answer.headers) is (status == 503)


def test_paths_and_methods_that_are_not_there_are_problems_too(port: int) -> None:
    assert request(port, "/nothing").json["status"] == 404
    wrong = request(port, "/echo")
    assert wrong.json["status"] == 405 and wrong.headers["allow"] == "POST"
    assert request(port, "/health").json == {"status": "ready"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8765", "[::1]", "localhost:1", "a.localhost", "PHOTOS.example.", "10.0.0.7"]
)
def test_a_server_answers_to_its_names_and_to_addresses(port: int, host: str) -> None:
    assert request(port, "/health", host=host).status == 200


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, {"host": "evil.example"}),  # DNS rebinding: a name of the attacker's, pointed here
        (421, {"host": "localhost.evil.example:8765"}),
        (421, {"host": "127.0.0.1.evil.example"}),
        (400, {"host": "[::1"}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "null"}),
        (403, {"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8766"}),
        (403, {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}),
    ],
)
def test_what_a_page_of_another_site_makes_a_browser_send_is_refused(
    port: int, status: int, headers: dict[str, str]
) -> None:
    assert request(port, "/health", **headers).json["status"] == status


def test_its_own_pages_may_call_and_links_from_elsewhere_open(port: int) -> None:
    own = {"host": "localhost:8765", "origin": "http://localhost:8765", "sec_fetch_site": "same-origin"}
    assert request(port, "/echo", b"hello", **own).body == b"hello"
    assert request(port, "/health", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status == 200


def test_bodies_are_limited_while_they_arrive(port: int) -> None:
    assert request(port, "/echo", b"x" * _MOST).body == b"x" * _MOST
    declared = request(port, "/echo", b"x" * (_MOST + 1))
    assert declared.status == 413 and declared.json["field"] == "body"
    head = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    chunk = b"%x\r\n%s\r\n" % (_MOST // 2, b"x" * (_MOST // 2))
    assert b" 413 " in raw(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + 3 * chunk + b"0\r\n\r\n")
    assert request(port, "/echo", b"x", content_encoding="gzip").json["field"] == "content-encoding"


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS where none is spoken
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=["tls", "two-hosts", "no-host", "long", "negative", "smuggled", "chunk", "h2", "path"],
)
def test_nothing_that_is_not_http_ends_the_server(port: int, data: bytes) -> None:
    said = raw(port, data)
    assert not said or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505"))
    assert request(port, "/health").status == 200


def test_one_caller_has_half_of_the_places(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_MOST_REQUESTS", 6)
    _gate.clear()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(request(port, "/wait").status)) for _ in range(5)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 10
    while len(answers) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert answers == [429, 429]
    _gate.set()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 200, 200, 429, 429]
    assert request(port, "/health").status == 200


def test_a_caller_who_keeps_its_request_to_itself_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are answered meanwhile, also on a connection that is older than that."""
    monkeypatch.setattr(serving, "_STUCK_SECONDS", 0.6)
    with serve(WebSettings(port=0)) as server:
        silent, slow, busy = (socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3))
        with silent, slow, busy:
            slow.sendall(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nbegun")
            for _ in range(8):
                busy.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                said = b""
                while b"ready" not in said:
                    said += busy.recv(4096)
                time.sleep(0.15)
            for connection in (silent, slow):
                with suppress(ConnectionResetError):
                    assert connection.recv(1) == b""


def test_a_token_is_asked_for_where_the_file_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("first\n")
    with serve(WebSettings(port=0, token_file=str(file))) as server:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first"}):
            refused = request(server.port, "/echo", b"x", **headers)
            assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert request(server.port, "/echo", b"x", authorization="bearer first").body == b"x"  # as Milvus writes it
        assert request(server.port, "/health").status == 200
        file.write_text("second\n")
        assert request(server.port, "/echo", b"x", authorization="Bearer first").status == 401
        assert request(server.port, "/echo", b"x", authorization="Bearer second").status == 200


def test_settings_that_let_everybody_in_must_say_so(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--no-auth") as caught:
        WebSettings(host="0.0.0.0")
    assert caught.value.field == "host"
    WebSettings(host="0.0.0.0", no_auth=True)
    WebSettings(host="::1")
    with pytest.raises(InvalidInput, match="tls-cert is given"):
        WebSettings(tls_cert=str(tmp_path / "cert.pem"))


def test_a_port_in_use_and_an_address_of_others_are_one_line() -> None:
    with serve(WebSettings(port=0)) as server, pytest.raises(PortTaken, match=f":{server.port} is in use"):
        serve(WebSettings(port=server.port))
    with pytest.raises(InvalidInput, match="cannot listen on 192.0.2.1"):
        serve(WebSettings(host="192.0.2.1", port=0, no_auth=True))
