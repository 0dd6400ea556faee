"""More than the server can take: full queues, bytes in flight, messages that flood in."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_server.app import ServerThread
from tests.server.edge.support import eventually, items, jpeg, open_channel, refused_beside, settings, silence, slow_png
from tests.servers import ServerProcess, health


def test_full_queue_refuses_unary_at_once_with_a_hint_and_lets_streams_wait(tiny_model: Path) -> None:
    limited = settings(tiny_model, max_queue_size=1, decode_threads=1)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        busy, error = refused_beside(stub, pb.EncodeRequest(image=slow_png()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        assert 10 <= int(hint) <= 10_000
        assert health(server.address) == "SERVING"
        answers = list(stub.EncodeStream(items([jpeg()] * 20), timeout=30))
        assert len(answers) == 20 and all(answer.HasField("response") for answer in answers)
        assert busy.result().width == 9000


def test_calls_over_the_limit_are_refused_before_their_message_is_read(tiny_model: Path) -> None:
    """A caller that sends nothing holds a place, for receive_seconds and no longer."""
    limited = settings(tiny_model, max_calls=1, receive_seconds=3)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        gate = threading.Event()
        stub = pb_grpc.FocusEncoderStub(channel)
        refused: list[grpc.RpcError] = []
        for _ in range(20):  # the call that has the place may be this one, and the silent one be refused
            silent = channel.stream_unary("/phs.v1.FocusEncoder/Encode").future(silence(gate), timeout=60)
            while not refused and not silent.done():
                try:
                    stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
                except grpc.RpcError as error:
                    refused.append(error)
            if refused:
                break
        assert refused[0].code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "1 calls" in refused[0].details()
        assert silent.exception(60).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.set()
        assert stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160


def test_a_request_is_freed_when_it_is_answered(tiny_model: Path) -> None:
    """Not when Python next collects circles of references: requests are large, and that is hundreds of MiB later."""

    def requests() -> list[object]:
        return [thing for thing in gc.get_objects() if type(thing) in (pb.EncodeRequest, pb.EncodeStreamRequest)]

    def held() -> int:
        return len(requests()) - len(others)

    def serialized(cancelled: threading.Event) -> Iterator[bytes]:
        yield pb.EncodeStreamRequest(id=1, request=pb.EncodeRequest(image=b"no image")).SerializeToString()
        cancelled.wait(30)

    with ServerThread(settings(tiny_model)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        gc.collect()
        gc.disable()
        others = requests()  # of tests before this one; they stay as long as this list
        try:
            for image in (jpeg(), b"no image"):
                stub.Encode.future(pb.EncodeRequest(image=image), timeout=20).exception()
            cancelled = threading.Event()
            # As bytes: gRPC's client, in this same process, would hold the message that it sent last.
            method = channel.stream_stream(
                "/phs.v1.FocusEncoder/EncodeStream", None, pb.EncodeStreamResponse.FromString
            )
            stream = method(serialized(cancelled), timeout=20)
            assert next(stream).error.code
            eventually(lambda: held() == 0)  # although the stream is open
            stream.cancel()
            cancelled.set()
            eventually(lambda: held() == 0)
        finally:
            gc.enable()


def test_a_flood_of_large_messages_is_bounded_in_memory(tiny_model: Path) -> None:
    """Three times 200 calls of 4 MB at once, 2.4 GB in all, on four connections; 8 may be read at a time."""
    flood = pb.EncodeRequest(image=bytes(4_000_000))
    limits = {"max_message_bytes": 2**22, "max_calls": 8, "max_in_flight_bytes": 2**24}
    with ServerProcess(tiny_model, **limits) as server:
        channels = [open_channel(server.address) for _ in range(4)]
        stubs = [pb_grpc.FocusEncoderStub(channel) for channel in channels]
        stubs[0].Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
        before = peak = server.resident_mib
        for _ in range(3):
            calls = [stubs[index % 4].Encode.future(flood, timeout=60) for index in range(200)]
            while not all(call.done() for call in calls):
                peak = max(peak, server.resident_mib)
                time.sleep(0.01)
            codes = {call.code() for call in calls}
            assert codes == {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert peak - before < 350, f"MiB: {before}, at most {peak}"
        until = time.monotonic() + 30
        while server.resident_mib - before > 150:  # freed memory is given back every few seconds
            assert time.monotonic() < until, f"MiB: {before}, at most {peak}, still {server.resident_mib}"
            time.sleep(0.5)
        assert stubs[0].Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160
        for channel in channels:
            channel.close()


def test_bytes_in_flight_are_bounded(tiny_model: Path) -> None:
    """While one large request is worked on, a second is refused; a stream waits and completes."""
    limited = settings(tiny_model, max_in_flight_bytes=1000, max_connection_bytes=1000, decode_threads=1)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        busy, error = refused_beside(stub, pb.EncodeRequest(image=slow_png()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "bytes" in error.details()
        assert len(list(stub.EncodeStream(items([jpeg()] * 20), timeout=30))) == 20
        assert busy.result().width == 9000
