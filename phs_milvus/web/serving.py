"""Serving an app with uvicorn: the port, TLS, the line that says that it is ready, and a graceful end."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from h11 import IDLE, SEND_BODY
from starlette.types import ASGIApp

from phs_milvus.contract.errors import InvalidInput, PhsError, PortTaken, reason_of, shown
from phs_milvus.web.settings import WebSettings

_MOST_CONNECTIONS = 512
# A request must have arrived, and its answer must be taken up, within this time.
_STUCK_SECONDS = 60.0
_START_SECONDS = 30.0


class WebServer:
    """One app on one port, in the foreground by `run`, or on a thread while it is used as a context manager.

    Attributes:
        port: the TCP port.
        url: where it can be reached from this machine, for example "http://127.0.0.1:8765".

    Raises:
        InvalidInput: an address that this machine does not have.
        PortTaken: the port is in use, or not allowed.
    """

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._socket = _listen(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http{'s' if settings.tls_cert else ''}://{_reachable(settings.host)}:{self.port}"
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # errors are logged by `phs_milvus.web.problems`, and attacks are no errors
                access_log=False,
                server_header=False,
                proxy_headers=False,  # they are the caller's own words
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=settings.drain_seconds,
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="phs-web", daemon=True)

    def run(self, ready: Callable[[str], Any]) -> None:
        """Serves until SIGTERM or Ctrl-C, then finishes what was accepted.

        Args:
            ready: called with the URL when the port answers.
        """
        self._server.ready = lambda: ready(self.url)
        self._serve()

    def __enter__(self) -> WebServer:
        self._thread.start()
        until = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise PhsError(f"the web server on port {self.port} did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


class _Server(uvicorn.Server):
    """uvicorn's server, which ends quietly on a signal, and ends connections that nothing moves on."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: Callable[[], Any] = lambda: None
        # By connection: its last request, and since when it has been stuck after it.
        self._stuck: dict[Any, tuple[Any, float]] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal once more afterwards, which is no success to who sent it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        now = time.monotonic()
        before, self._stuck = self._stuck, {}
        connections: set[Any] = self.server_state.connections  # all of them uvicorn's H11Protocol
        for connection in filter(_is_stuck, connections):
            last, since = before.get(connection, (None, now))
            self._stuck[connection] = (connection.cycle, since if last is connection.cycle else now)
            if now - self._stuck[connection][1] > _STUCK_SECONDS:
                connection.transport.abort()
        return await super().on_tick(counter)


def _is_stuck(connection: Any) -> bool:
    """Whether a connection waits for its caller: for the rest of a request, or to take up an answer."""
    return connection.conn.their_state in (IDLE, SEND_BODY) or connection.flow.write_paused


def _listen(host: str, port: int) -> socket.socket:
    try:
        ((family, _, _, _, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        where = f"{shown(host)}:{port}"
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"{where} is in use; stop what listens there, or pass another --port") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PortTaken(f"this user may not listen on {where}; pass a --port above 1023") from None
        raise InvalidInput(f"cannot listen on {where}: {reason_of(error)}", "host") from None


def _reachable(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
