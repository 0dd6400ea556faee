"""What one caller on the network can do to the others: each test is a kind of attack on a real server process."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from tests.hostile.http2 import HEALTH, SERVICE, Client, message, unfinished
from tests.servers import ServerProcess, health

HIDDEN, HEADS = 48, 4
OK, EXHAUSTED, UNIMPLEMENTED = 0, 8, 12
# Of a process whose allocator keeps some of what it had; without the bounds it would be gigabytes.
GROWTH_MIB = 450
OTHER = "127.0.0.2"


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_model, precision="float32", max_calls=32, max_streams=4, drain_seconds=5) as server:
        yield server


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def assert_serves(server: ServerProcess, seconds: float = 30) -> None:
    """A good caller on a new connection is answered, refusals tried again as clients do."""
    until = time.monotonic() + seconds
    while True:
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            try:
                assert (
                    pb_grpc.FocusEncoderStub(channel).Encode(pb.EncodeRequest(image=picture()), timeout=20).width == 80
                )
                return
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        assert time.monotonic() < until, "a good caller got no answer"


def test_a_path_that_is_no_text_ends_nothing(server: ServerProcess) -> None:
    client = Client(server.address)
    for path in (SERVICE.encode() + b"\xff\xfe", b"/\xc3\x28", b"\x80"):
        client.open(path, end=True)
    client.wait(lambda: len(client.ended) == 3, 2)
    assert_serves(server)
    client.close()


def test_nothing_is_inflated(server: ServerProcess) -> None:
    """60 MB of zeros are 60 kB of gzip."""
    packed = message(gzip.compress(bytes(60 << 20), 1), compressed=True)
    before = server.resident_mib
    client = Client(server.address)
    for path in (f"{HEALTH}Watch", f"{HEALTH}Check", f"{SERVICE}Encode", f"{SERVICE}EncodeStream"):
        stream = client.open(path, grpc_encoding="gzip")
        client.send(stream, packed, end=True)
        assert client.wait(lambda stream=stream: stream in client.ended)
        assert client.statuses[stream] == UNIMPLEMENTED
    assert server.resident_mib - before < GROWTH_MIB
    client.close()


@pytest.mark.parametrize("path", [f"{HEALTH}Check", f"{HEALTH}Watch", f"{SERVICE}Encode", f"{SERVICE}EncodeStream"])
@pytest.mark.parametrize("connections", [1, 20])
def test_messages_that_lack_their_last_byte_fill_no_memory(server: ServerProcess, path: str, connections: int) -> None:
    """A gigabyte of them."""
    before, data, clients = server.resident_mib, unfinished(50), []
    for index in range(20):
        if index < connections:
            clients.append(Client(server.address, source=OTHER))
        clients[-1].send(clients[-1].open(path), data)
    assert_serves(server)
    until = time.monotonic() + 20
    while server.resident_mib - before > GROWTH_MIB:
        assert time.monotonic() < until, f"{server.resident_mib - before:.0f} MiB are still held"
        time.sleep(0.2)
    for client in clients:
        client.close()


def test_a_probe_is_a_known_name(server: ServerProcess) -> None:
    client = Client(server.address)
    stream = client.open(f"{HEALTH}Check")
    client.send(stream, message(b"\x0a" + bytes([200, 40]) + b"x" * 5192), end=True)
    assert client.wait(lambda: stream in client.statuses) and client.statuses[stream] == 3
    assert health(server.address, "nonsense") == "NOT_FOUND"
    client.close()


def test_one_address_cannot_hold_every_place(server: ServerProcess) -> None:
    """Neither calls nor streams: who holds most gives one up to another address, whose call goes on."""
    for method, places in (("Encode", 32), ("EncodeStream", 4)):
        hog = Client(server.address, source=OTHER)
        streams = [hog.open(SERVICE + method) for _ in range(2 * places)]
        for stream in streams:
            hog.send(stream, b"\0\0\1\0\0")  # a message of 64 KiB is announced, and never comes
        assert hog.wait(lambda hog=hog, places=places: list(hog.statuses.values()).count(EXHAUSTED) >= places)
        with grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel:
            stub = pb_grpc.FocusEncoderStub(channel)
            if method == "Encode":
                assert stub.Encode(pb.EncodeRequest(image=picture()), timeout=20).width == 80
            else:
                item = pb.EncodeStreamRequest(id=7, request=pb.EncodeRequest(image=picture()))
                assert [answer.id for answer in stub.EncodeStream(iter([item]), timeout=20)] == [7]
        assert hog.wait(lambda hog=hog, places=places: list(hog.statuses.values()).count(EXHAUSTED) == places + 1)
        hog.close()


def rerank(queries: int, states: int) -> bytes:
    request = wire.rerank_request(
        np.ones((queries, HIDDEN), np.float32),
        np.ones((queries, HEADS), np.float32),
        np.ones((states, 2, HIDDEN), np.float16),
    )
    return message(request.SerializeToString())


def test_answers_that_nobody_reads_are_bounded_and_cost_their_caller_the_connection(tiny_model: Path) -> None:
    """Each is 16 MB; the limit is 100 MB, and a caller has a second to read."""
    limits = {"max_in_flight_bytes": 100_000_000, "max_connection_bytes": 100_000_000, "answer_seconds": 2}
    with ServerProcess(tiny_model, precision="float32", **limits) as server:
        assert_serves(server)
        client, data, before = Client(server.address, source=OTHER, window=0), rerank(2000, 2000), server.resident_mib
        streams = []
        for _ in range(20):
            streams.append(client.open(f"{SERVICE}Rerank"))
            if not client.send(streams[-1], data, end=True):
                break
        assert client.wait(lambda: EXHAUSTED in client.statuses.values()), client.statuses
        assert server.resident_mib - before < GROWTH_MIB
        assert client.wait(lambda: client.closed), "its connection is still open"
        assert_serves(server)


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (lambda: b"\x22\x80\x80\x80\x10" + b"\1" * (32 << 20), "outputs"),
        (lambda: b"\x20\x01" * 300, "outputs"),
        (lambda: b"\x20\x01" * 17, "outputs"),
        (lambda: b"\x20\x00", "outputs"),
        (lambda: b"\x20\x63", "outputs"),
        (lambda: b"\x20\x01\x20\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "outputs"),
        (lambda: b"\x12\x86\x80\x80\x10\x1a\x80\x80\x80\x10" + b"\1" * (32 << 20), "mask"),
        (lambda: b"\x2a\x80\x80\x80\x10" + b"a" * (32 << 20), "expected_fingerprint"),
    ],
    ids=["millions", "unpacked", "17", "zero", "unknown", "negative", "runs", "fingerprint"],
)
def test_lists_that_are_too_long_or_hold_what_there_is_not_are_named(
    server: ServerProcess, request_of: object, field: str
) -> None:
    data = pb.EncodeRequest(image=picture()).SerializeToString() + request_of()  # type: ignore[operator]
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"{SERVICE}Encode")(data, timeout=20)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(f"{field}: ") and len(caught.value.details()) < 300


def test_a_watch_that_is_not_read_holds_up_neither_others_nor_the_end(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, precision="float32", drain_seconds=20) as server:
        stuck = Client(server.address, window=0)
        for name in (b"", b"\x0a\x09readiness", b"\x0a\x04what"):
            stuck.send(stuck.open(f"{HEALTH}Watch"), message(name), end=True)
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.process.terminate()
            with pytest.raises(grpc.RpcError) as caught:
                assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
                next(watch)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.process.wait(15) == 0, "it waited for a watch as long as for a request"
