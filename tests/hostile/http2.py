"""A gRPC client that says what no client library would: half of a message, nothing at all, a path of any bytes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

SERVICE = "/phs.v1.FocusEncoder/"
HEALTH = "/grpc.health.v1.Health/"
SECONDS = 30.0


class Client:
    """One connection, whose answers are read on a thread.

    Args:
        address: "host:port" of the server.
        source: loopback address it comes from.
        window: bytes that the server may send on each stream.

    Attributes:
        statuses: grpc-status by stream, once it has come.
        ended: streams that the server has ended.
        closed: the server has ended the connection.
    """

    def __init__(self, address: str, source: str = "127.0.0.1", window: int = 65535) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), SECONDS, (source, 0))
        config = H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        self._h2 = H2Connection(config)
        self._changed = threading.Condition()
        self.statuses: dict[int, int] = {}
        self.ended: set[int] = set()
        self.data: dict[int, bytes] = {}
        self.closed = False
        self._h2.initiate_connection()
        self._h2.update_settings({4: window})
        self._flush()
        threading.Thread(target=self._read, daemon=True).start()

    def open(self, path: str | bytes, end: bool = False, **headers: str) -> int:
        """Starts a call; the number of its stream."""
        with self._changed:
            stream = self._h2.get_next_available_stream_id()
            fixed = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
            fixed += [("content-type", "application/grpc"), ("te", "trailers")]
            pairs = [*fixed, *((name.replace("_", "-"), value) for name, value in headers.items())]
            encoded = [(n.encode(), v if isinstance(v, bytes) else v.encode()) for n, v in pairs]
            self._h2.send_headers(stream, encoded, end_stream=end)
            self._flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = False) -> bool:
        """As far as the server lets it; False where the call ended meanwhile."""
        position, until = 0, time.monotonic() + SECONDS
        while position < len(data):
            with self._changed:
                try:
                    room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
                    if self.closed or stream in self.ended or time.monotonic() > until:
                        return False
                    if room <= 0:
                        self._changed.wait(0.1)
                        continue
                    piece = data[position : position + room]
                    position += len(piece)
                    last = end and position == len(data)
                    self._h2.send_data(stream, piece, end_stream=last)
                    self._flush()
                except (ProtocolError, OSError):
                    return False
        return True

    def wait(self, holds: Callable[[], bool], seconds: float = SECONDS) -> bool:
        """Whether it became true in time."""
        until = time.monotonic() + seconds
        while not holds() and time.monotonic() < until:
            time.sleep(0.02)
        return holds()

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _read(self) -> None:
        with contextlib.suppress(OSError, ProtocolError):
            while data := self._recv():
                with self._changed:
                    for event in self._h2.receive_data(data):
                        self._on(event)
                    self._flush()
                    self._changed.notify_all()
        self.closed = True

    def _recv(self) -> bytes:
        while not self.closed:
            with contextlib.suppress(TimeoutError):
                return self._socket.recv(65536)
        return b""

    def _on(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            assert event.stream_id is not None and event.data is not None
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, StreamEnded | StreamReset):
            assert event.stream_id is not None
            self.ended.add(event.stream_id)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            status = dict(event.headers or ()).get(b"grpc-status")
            if status is not None and event.stream_id is not None:
                self.statuses[event.stream_id] = int(status)


def message(data: bytes, compressed: bool = False) -> bytes:
    """A gRPC message on the wire."""
    return bytes([compressed]) + struct.pack(">I", len(data)) + data


def unfinished(megabytes: int) -> bytes:
    """A message of one long field, without its last byte."""
    size = megabytes << 20
    tag = b"\x0a" + _varint(size)
    return message(tag + bytes(size))[:-1]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
