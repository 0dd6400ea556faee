"""Requests over a real connection, as any program would send them."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any, NamedTuple

from phs_milvus.client.encoder import Encoder


class Answer(NamedTuple):
    """What a web server said."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int, path: str, body: bytes | str | None = None, method: str = "", timeout: float = 30, **headers: str
) -> Answer:
    """One request on a connection of its own; headers as keyword arguments, `_` for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def raw(port: int, data: bytes, timeout: float = 10) -> bytes:
    """What is answered to these bytes, until the server closes the connection or says nothing more."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


class Site(NamedTuple):
    """A page that is served.

    port: its TCP port; backend: what it works with.
    """

    port: int
    backend: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> Answer:
        return request(self.port, path, **headers)

    def post(self, path: str, body: bytes | dict[str, Any], **headers: str) -> Answer:
        return request(self.port, path, json.dumps(body) if isinstance(body, dict) else body, **headers)


def open_encoder(address: str) -> Encoder:
    """An encoder that has met its server."""
    encoder = Encoder(address)
    encoder.fetch_info()
    return encoder
