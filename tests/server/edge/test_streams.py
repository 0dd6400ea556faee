"""EncodeStream: errors of single items, clients that never read, cancelled streams."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_server.app import ServerThread
from phs_server.edge.admission import Admission
from phs_server.edge.callers import caller_of
from phs_server.edge.connections import Connections
from phs_server.edge.service import FocusEncoderService
from phs_server.flow.pipeline import Pipeline
from phs_server.ops.metrics import Metrics
from tests.server.edge.support import ALL, eventually, failure, float32, held_open, items, jpeg, open_channel, settings


def test_stream_answers_every_item_also_around_bad_ones(stub: pb_grpc.FocusEncoderStub) -> None:
    """300 items, many more than a window; every fifth is bad. Good ones equal their unary answers."""
    images = [jpeg(index % 7) if index % 5 else b"broken" for index in range(300)]
    answers = {answer.id: answer for answer in stub.EncodeStream(items(images), timeout=60)}
    assert sorted(answers) == list(range(300))
    expected = {
        seed: float32(stub.Encode(pb.EncodeRequest(image=jpeg(seed)), timeout=20).embedding) for seed in range(7)
    }
    for index, answer in answers.items():
        if index % 5:
            np.testing.assert_allclose(float32(answer.response.embedding), expected[index % 7], atol=1e-5)
        else:
            assert answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert answer.error.message.startswith("image: ")


def test_stream_items_fail_alone_for_another_fingerprint(stub: pb_grpc.FocusEncoderStub) -> None:
    (answer,) = stub.EncodeStream(items([jpeg()], expected_fingerprint="abc"), timeout=20)
    assert answer.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


def test_a_client_that_never_reads_is_stopped_and_harms_nobody(address: str) -> None:
    """It may send no more than the windows of the server and of HTTP/2 hold, however much it has.

    Without its probing of the bandwidth the client's window stays at 64 KiB of answers, about 200 items of these.
    """
    sent = 0

    def endless() -> Iterator[pb.EncodeStreamRequest]:
        nonlocal sent
        image = jpeg()
        while True:
            yield pb.EncodeStreamRequest(id=sent, request=pb.EncodeRequest(image=image, outputs=ALL))
            sent += 1

    with open_channel(address, ("grpc.http2.bdp_probe", 0)) as channel, open_channel(address) as other:
        call = pb_grpc.FocusEncoderStub(channel).EncodeStream(endless())
        before = -1
        while sent != before:
            assert sent < 2000, "nothing stops it"
            before = sent
            time.sleep(1)
        assert pb_grpc.FocusEncoderStub(other).Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160
        call.cancel()


def test_a_cancelled_stream_frees_its_place(tiny_model: Path) -> None:
    with ServerThread(settings(tiny_model, max_streams=1)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        for _ in range(3):
            gate = threading.Event()
            call = stub.EncodeStream(held_open(gate))
            assert next(call).id == 0
            refused = failure(lambda: list(stub.EncodeStream(items([jpeg()]), timeout=20)))
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "streams" in refused.details()
            call.cancel()
            gate.set()
            eventually(lambda: [answer.id for answer in stub.EncodeStream(items([jpeg()]), timeout=20)] == [0])


def test_an_item_read_as_its_stream_is_cancelled_gives_its_bytes_back(tiny_model: Path) -> None:
    admission = Admission(settings(tiny_model))
    service = FocusEncoderService(settings(tiny_model), Metrics(), admission, Connections())
    service.pipeline = Pipeline(settings(tiny_model))
    held: list[int] = []

    class Context:
        """Cancels the stream in the very moment in which its first item is read."""

        reads = 0
        stream: asyncio.Task[None]

        def read(self) -> asyncio.Future[bytes]:
            self.reads += 1
            message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            if self.reads == 1:
                self.stream.cancel()
                message.set_result(next(items([jpeg()])).SerializeToString())
            else:
                held.append(admission.bytes_held)
            return message

    async def scenario() -> None:
        context = Context()

        async def serve() -> None:
            with admission.streams.taken(caller_of("ipv4:127.0.0.1:1")) as place:
                await service._encode_stream(context, place.caller, place)

        context.stream = asyncio.create_task(serve())
        await asyncio.gather(context.stream, return_exceptions=True)
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    service.pipeline.close(timeout=10)
    assert held[0] > 0 and admission.bytes_held == admission.images == len(admission.streams) == 0
