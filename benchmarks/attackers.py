"""Every kind of attack of tests/hostile, again and again, against one server: the company that soak.py --hostile keeps.

python -m benchmarks.attackers HOST:PORT      # until it is terminated
"""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import sys
import threading
import time
from collections.abc import Callable

import grpc
import numpy as np

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from tests.hostile.http2 import HEALTH, SERVICE, Client, message, unfinished
from tests.hostile.make import make

SOURCE = "127.0.0.2"
PAUSE_SECONDS = 0.5
PACKED = message(gzip.compress(bytes(60 << 20), 1), compressed=True)
METHODS = [f"{SERVICE}{name}" for name in ("Encode", "EncodeStream", "Rerank", "Readout", "Locate", "GetModelInfo")]
PROBES = [f"{HEALTH}Check", f"{HEALTH}Watch"]


def odd_paths(client: Client) -> None:
    for path in (b"/phs.v1.FocusEncoder/\xff\xfe", b"\x80", b"/no.such/Service", b"no path"):
        client.open(path, end=True)


def garbage(client: Client) -> None:
    for path in METHODS + PROBES:
        client.send(client.open(path), message(random.randbytes(random.randrange(5000))), end=True)


def inflated(client: Client) -> None:
    for path in METHODS + PROBES:
        client.send(client.open(path, grpc_encoding="gzip"), PACKED, end=True)


def last_byte_missing(client: Client) -> None:
    for path in METHODS + PROBES:
        client.send(client.open(path), unfinished(20))
    time.sleep(1)


def hogged_places(client: Client) -> None:
    for _ in range(200):
        client.send(client.open(random.choice(METHODS)), b"\0\0\1\0\0")
    time.sleep(3)


def unread_answers(client: Client) -> None:
    info = pb.ModelInfo.FromString(_answer(client.address, "GetModelInfo", b""))
    states = np.ones((2000, 2, info.hidden_size), np.float16)
    embeddings = np.ones((2000, info.embedding_size), np.float32)
    request = wire.rerank_request(embeddings, np.ones((2000, info.heads), np.float32), states)
    for _ in range(5):
        client.send(client.open(f"{SERVICE}Rerank"), message(request.SerializeToString()), end=True)
    for _ in range(20):
        client.send(client.open(f"{HEALTH}Watch"), message(b""), end=True)
    time.sleep(5)


def silent_connections(client: Client) -> None:
    host, _, port = client.address.rpartition(":")
    held = []
    with contextlib.suppress(OSError):
        for _ in range(300):
            held.append(socket.create_connection((host, int(port)), 2, (SOURCE, 0)))
    time.sleep(2)
    for connection in held:
        connection.close()


def long_lists(client: Client) -> None:
    for tag in (b"\x22", b"\x12", b"\x2a"):
        client.send(client.open(f"{SERVICE}Encode"), message(tag + b"\x80\x80\x80\x08" + b"\1" * (16 << 20)), end=True)


def odd_pictures(client: Client) -> None:
    with grpc.insecure_channel(client.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        for case in random.sample(CASES, 20):
            with contextlib.suppress(grpc.RpcError):
                stub.Encode(pb.EncodeRequest(image=case.image), timeout=10)


CASES = [case for case in make(0) if case.mask is None and len(case.image) < 1_000_000]
KINDS: tuple[tuple[Callable[[Client], None], int], ...] = (
    (odd_paths, 65535),
    (garbage, 65535),
    (inflated, 65535),
    (last_byte_missing, 65535),
    (hogged_places, 65535),
    (unread_answers, 0),
    (silent_connections, 65535),
    (long_lists, 65535),
    (odd_pictures, 65535),
)


def _answer(address: str, method: str, request: bytes) -> bytes:
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        return channel.unary_unary(SERVICE + method)(request, timeout=20)


def attack(address: str, kind: Callable[[Client], None], window: int) -> None:
    """One kind for ever; what the server does to the attacker is of no interest here."""
    while True:
        with contextlib.suppress(Exception):
            client = Client(address, source=SOURCE, window=window)
            try:
                kind(client)
            finally:
                client.close()
        time.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))


def main() -> None:
    for kind, window in KINDS:
        threading.Thread(target=attack, args=(sys.argv[1], kind, window), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
