"""A Milvus that goes away, or stops, while others use it: a TCP relay before a real one."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit


def milvus_address(uri: str) -> str:
    """ "http://host:port" of a server's URI, or of the Milvus Lite that serves this path in this process."""
    if uri.startswith("http"):
        return uri
    from milvus_lite.server_manager import server_manager_instance

    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    return str(server_manager_instance.start_and_get_uri(uri))


class Relay:
    """Passes connections on to `target`, "http://host:port".

    Attributes:
        uri: its own, on a loopback port.
    """

    def __init__(self, target: str) -> None:
        found = urlsplit(target)
        self._target = (str(found.hostname), int(found.port or 0))
        self._open = threading.Event()  # bytes flow
        self._open.set()
        self._sockets: list[socket.socket] = []
        self._listener = self._listen(0)
        self._port = self._listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def go_away(self) -> None:
        """As a server that was killed: connections end, new ones are refused."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._sockets.clear()

    def come_back(self) -> None:
        """At the same port."""
        self._listener = self._listen(self._port)

    def freeze(self) -> None:
        """As a server that was stopped: connections stay, new ones are taken, and nothing is answered."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def close(self) -> None:
        self.thaw()
        with suppress(OSError):
            self.go_away()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()
        return listener

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                while not self._open.wait(timeout=0.1):
                    time.sleep(0)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
