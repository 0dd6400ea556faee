"""The server over real gRPC on loopback: every method, every status, streams, health, overload, signals."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import EncoderUnavailable, ModelError
from phs_milvus.contract.types import MaskRuns
from phs_server.app import ServerThread
from phs_server.config import Settings, add_flags, make_parser, parse
from phs_server.edge.service import FocusEncoderService
from phs_server.flow.pipeline import Pipeline
from phs_server.ops.metrics import Metrics
from tests.servers import REPO, ServerProcess, free_port, health

HEADS, HIDDEN, GRID, SIDE = 4, 48, 4, 56
ALL = [pb.OUTPUT_EMBEDDING, pb.OUTPUT_STATE, pb.OUTPUT_HEADS, pb.OUTPUT_TIMINGS]


def jpeg(seed: int = 0, size: tuple[int, int] = (160, 120)) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def slow_png() -> bytes:
    """Valid, small in bytes, and half a second of work to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 9000), "red").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def box_mask(width: int = 160, height: int = 120) -> pb.Mask:
    inside = np.zeros((height, width), np.bool_)
    inside[: height // 2, : width // 2] = True
    return pb.Mask(width=width, height=height, runs=MaskRuns.from_array(inside).runs.tolist())


def float32(tensor: pb.Tensor) -> np.ndarray:
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def settings(model: Path, **changes: object) -> Settings:
    return Settings(**{"model": str(model), "port": 0, "precision": "float32", "drain_seconds": 2, **changes})


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with open_channel(address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.FocusEncoderStub:
    return pb_grpc.FocusEncoderStub(channel)


def open_channel(address: str) -> grpc.Channel:
    """Without retries, so that a test sees what the server says."""
    return grpc.insecure_channel(
        address,
        [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
    )


def failure(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


# --- unary ------------------------------------------------------------------------------------------------------------


def test_encode_answers_with_all_that_is_asked(stub: pb_grpc.FocusEncoderStub) -> None:
    focus = pb.Focus(heads_on=2)
    answer = stub.Encode(pb.EncodeRequest(image=jpeg(), mask=box_mask(), focus=focus, outputs=ALL), timeout=20)
    assert (answer.width, answer.height) == (160, 120)
    embedding = float32(answer.embedding)
    assert embedding.shape == (HIDDEN,) and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert (list(answer.state.shape), answer.state.dtype) == ([2, HIDDEN], pb.DTYPE_FLOAT16)
    scores, weights = float32(answer.head_scores), float32(answer.head_weights)
    assert scores.shape == (HEADS,) and ((scores > 0) & (scores < 1)).all()
    assert sorted(weights) == [0, 0, 2, 2] and set(np.flatnonzero(weights)) == set(np.argsort(-scores)[:2])
    assert answer.timings.decode_ms > 0 and answer.timings.compute_ms > 0


def test_encode_without_outputs_or_mask_is_the_plain_embedding(stub: pb_grpc.FocusEncoderStub) -> None:
    plain = stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
    assert plain.HasField("embedding") and not plain.HasField("state") and not plain.HasField("timings")
    heads = stub.Encode(pb.EncodeRequest(image=jpeg(), outputs=[pb.OUTPUT_HEADS]), timeout=20)
    assert not heads.HasField("embedding") and not heads.HasField("head_scores")
    assert float32(heads.head_weights).tolist() == [1] * HEADS
    focused = stub.Encode(pb.EncodeRequest(image=jpeg(), mask=box_mask()), timeout=20)
    assert not np.allclose(float32(plain.embedding), float32(focused.embedding), atol=1e-3)


def test_explain_shows_attention_mask_and_selection(stub: pb_grpc.FocusEncoderStub) -> None:
    answer = stub.Explain(pb.ExplainRequest(image=jpeg(), mask=box_mask()), timeout=20)
    attention, mask = float32(answer.attention), float32(answer.mask)
    assert attention.shape == (HEADS, GRID, GRID) and (attention.sum((1, 2)) < 1).all()
    expected = np.zeros((GRID, GRID))
    expected[:2, :2] = 1
    np.testing.assert_allclose(mask, expected, atol=1e-6)
    np.testing.assert_allclose(float32(answer.head_scores), (attention * mask).sum((1, 2)), rtol=1e-4)
    assert not stub.Explain(pb.ExplainRequest(image=jpeg()), timeout=20).HasField("mask")


def test_rerank_of_a_state_equals_the_embedding_it_reads_out_to(stub: pb_grpc.FocusEncoderStub) -> None:
    """One state under ones, one under the focused weights: cosine 1 with the embedding the server gave for each."""
    plain = stub.Encode(pb.EncodeRequest(image=jpeg(), outputs=ALL), timeout=20)
    focused = stub.Encode(pb.EncodeRequest(image=jpeg(), mask=box_mask(), outputs=ALL), timeout=20)
    embeddings = np.stack([float32(plain.embedding), float32(focused.embedding)])
    weights = np.stack([float32(plain.head_weights), float32(focused.head_weights)])
    states = np.frombuffer(plain.state.data, np.float16).reshape(1, 2, HIDDEN)
    scores = float32(stub.Rerank(wire.rerank_request(embeddings, weights, states), timeout=20).scores)
    np.testing.assert_allclose(scores, [[1], [1]], atol=1e-4)


def test_model_info(stub: pb_grpc.FocusEncoderStub, tiny_model: Path) -> None:
    info = stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=20)
    assert (info.heads, info.hidden_size, info.embedding_size, info.image_size) == (HEADS, HIDDEN, HIDDEN, SIDE)
    assert (info.grid_height, info.grid_width, info.model_id) == (GRID, GRID, str(tiny_model))
    assert len(info.fingerprint) == 64 and info.limits.image_bytes == Settings.max_image_bytes


def bad_requests() -> list[tuple[str, dict[str, object], str]]:
    good = jpeg()
    return [
        ("empty image", {"image": b""}, "image: "),
        ("not an image", {"image": b"hello, world"}, "image: "),
        ("truncated", {"image": good[: len(good) // 2]}, "image: "),
        ("mask of another size", {"mask": box_mask(10, 10)}, "mask: "),
        ("runs that do not sum up", {"mask": pb.Mask(width=160, height=120, runs=[5, 5])}, "mask: "),
        ("runs that overflow", {"mask": pb.Mask(width=160, height=120, runs=[2**32 - 1] * 9)}, "mask: "),
        ("no runs", {"mask": pb.Mask(width=160, height=120)}, "mask: "),
        ("nothing set", {"mask": pb.Mask(width=160, height=120, runs=[160 * 120])}, "mask: "),
        ("millions of runs", {"mask": pb.Mask(width=160, height=120, runs=[0] * (2**22 + 1))}, "mask: "),
        ("too many heads", {"focus": pb.Focus(heads_on=5)}, "focus: "),
    ]


@pytest.mark.parametrize(
    ("changes", "field"), [case[1:] for case in bad_requests()], ids=[c[0] for c in bad_requests()]
)
def test_invalid_argument_names_the_field(
    stub: pb_grpc.FocusEncoderStub, changes: dict[str, object], field: str
) -> None:
    request = {"image": jpeg(), **changes}
    for call in (
        lambda: stub.Encode(pb.EncodeRequest(**request), timeout=20),
        lambda: stub.Explain(pb.ExplainRequest(**request), timeout=20),
    ):
        error = failure(call)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith(field), error.details()


@pytest.mark.parametrize(
    ("field", "tensor"),
    [
        ("embeddings", np.ones((0, HIDDEN), np.float32)),
        ("embeddings", np.ones((1, HIDDEN + 1), np.float32)),
        ("embeddings", np.full((1, HIDDEN), np.nan, np.float32)),
        ("head_weights", np.ones((2, HEADS), np.float32)),
        ("states", np.ones((1, 2, HIDDEN), np.float32)),
        ("states", np.ones((1, 3, HIDDEN), np.float16)),
    ],
)
def test_rerank_names_the_tensor_that_does_not_fit(
    stub: pb_grpc.FocusEncoderStub, field: str, tensor: np.ndarray
) -> None:
    request = wire.rerank_request(
        np.ones((1, HIDDEN), np.float32), np.ones((1, HEADS), np.float32), np.ones((1, 2, HIDDEN), np.float16)
    )
    getattr(request, field).CopyFrom(wire.tensor_to_pb(tensor))
    error = failure(lambda: stub.Rerank(request, timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: ")


def test_a_shape_of_millions_of_sizes_is_refused_in_a_short_text(stub: pb_grpc.FocusEncoderStub) -> None:
    request = pb.RerankRequest(embeddings=pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[1] * 2_000_000))
    error = failure(lambda: stub.Rerank(request, timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "got 2000000 dimensions" in error.details()


def test_more_scores_than_fit_into_a_message_are_refused_with_how_many_do(tiny_model: Path) -> None:
    def scores(queries: int, states: int) -> pb.RerankResponse:
        request = wire.rerank_request(
            np.ones((queries, HIDDEN), np.float32),
            np.ones((queries, HEADS), np.float32),
            np.ones((states, 2, HIDDEN), np.float16),
        )
        return stub.Rerank(request, timeout=20)

    with ServerThread(settings(tiny_model, max_message_bytes=65536)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        error = failure(lambda: scores(100, 162))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith("states: ") and "at most 161 states" in error.details()
        assert float32(scores(100, 161).scores).shape == (100, 161)


def test_another_fingerprint_is_a_failed_precondition(stub: pb_grpc.FocusEncoderStub) -> None:
    for call in (
        lambda: stub.Encode(pb.EncodeRequest(image=jpeg(), expected_fingerprint="abc"), timeout=20),
        lambda: stub.Explain(pb.ExplainRequest(image=jpeg(), expected_fingerprint="abc"), timeout=20),
        lambda: stub.Rerank(pb.RerankRequest(expected_fingerprint="abc"), timeout=20),
    ):
        error = failure(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION and "fingerprint abc" in error.details()


def test_bytes_that_are_no_message_are_an_invalid_argument(channel: grpc.Channel) -> None:
    for path in ("/phs.v1.FocusEncoder/Encode", "/phs.v1.FocusEncoder/Rerank"):
        error = failure(lambda path=path: channel.unary_unary(path)(b"\xff" * 100, timeout=20))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith("request: ")
    answers = channel.stream_stream("/phs.v1.FocusEncoder/EncodeStream")(iter([b"\xff" * 100]), timeout=20)
    assert failure(lambda: list(answers)).code() is grpc.StatusCode.INVALID_ARGUMENT
    none = channel.stream_unary("/phs.v1.FocusEncoder/Encode")
    assert failure(lambda: none(iter([]), timeout=20)).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_over_the_limit_is_refused(tiny_model: Path) -> None:
    with ServerThread(settings(tiny_model, max_message_bytes=65536)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=bytes(70_000)), timeout=20))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in error.details()
        assert stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160


def test_limits_are_checked_before_decoding(tiny_model: Path) -> None:
    limited = settings(tiny_model, max_image_bytes=5000, max_image_pixels=160 * 120)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        assert stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160
        bomb = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg(size=(161, 120))), timeout=20))
        large = failure(lambda: stub.Encode(pb.EncodeRequest(image=bytes(5001)), timeout=20))
        assert "image: is 161x120 pixels" in bomb.details() and "image: is 5001 bytes" in large.details()


def test_deadline_and_cancel_leave_a_working_server(stub: pb_grpc.FocusEncoderStub) -> None:
    slow = pb.EncodeRequest(image=slow_png())
    assert failure(lambda: stub.Encode(slow, timeout=0.05)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    call = stub.Encode.future(slow, timeout=20)
    time.sleep(0.05)
    call.cancel()
    assert call.cancelled()
    assert stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160


# --- streams ----------------------------------------------------------------------------------------------------------


def items(images: list[bytes], **changes: object) -> Iterator[pb.EncodeStreamRequest]:
    for index, image in enumerate(images):
        yield pb.EncodeStreamRequest(id=index, request=pb.EncodeRequest(image=image, **changes))


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
    """It may send no more than the windows of the server and of HTTP/2 hold, however much it has."""
    sent = 0

    def endless() -> Iterator[pb.EncodeStreamRequest]:
        nonlocal sent
        image = jpeg()
        while True:
            yield pb.EncodeStreamRequest(id=sent, request=pb.EncodeRequest(image=image, outputs=ALL))
            sent += 1

    with open_channel(address) as channel, open_channel(address) as other:
        call = pb_grpc.FocusEncoderStub(channel).EncodeStream(endless())
        before = -1
        until = time.monotonic() + 30
        while sent != before:
            assert time.monotonic() < until, f"still sending after {sent} items"
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
    service = FocusEncoderService(settings(tiny_model), Metrics())
    service.pipeline = Pipeline(settings(tiny_model))
    held: list[int] = []

    class Context:
        """Cancels the stream in the very moment in which its first item is read."""

        reads = 0
        stream: asyncio.Task[None]

        def peer(self) -> str:
            return "peer"

        async def read(self) -> pb.EncodeStreamRequest:
            self.reads += 1
            if self.reads == 1:
                self.stream.cancel()
                return next(items([jpeg()]))
            held.append(service.admission.bytes_held)
            return await asyncio.Event().wait()

    async def scenario() -> None:
        context = Context()

        async def read() -> None:
            async for _ in service._answers(context):
                pass

        context.stream = asyncio.create_task(read())
        await asyncio.gather(context.stream, return_exceptions=True)
        await asyncio.sleep(0.1)

    asyncio.run(scenario())
    service.pipeline.close(timeout=10)
    assert held[0] > 0 and service.admission.bytes_held == 0


def held_open(gate: threading.Event) -> Iterator[pb.EncodeStreamRequest]:
    yield from items([jpeg()])
    gate.wait(30)


def eventually(check: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except grpc.RpcError:
            pass
        assert time.monotonic() < until
        time.sleep(0.05)


# --- overload ---------------------------------------------------------------------------------------------------------


def test_full_queue_refuses_unary_at_once_with_a_hint_and_lets_streams_wait(tiny_model: Path) -> None:
    limited = settings(tiny_model, max_queue_size=1, decode_threads=1)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        busy = stub.Encode.future(pb.EncodeRequest(image=slow_png()), timeout=30)
        time.sleep(0.15)
        started = time.monotonic()
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20))
        assert time.monotonic() - started < 0.3
        assert not busy.done(), "the queue was not full; make slow_png slower"
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = dict(error.trailing_metadata())["grpc-retry-pushback-ms"]
        assert 10 <= int(hint) <= 10_000
        assert health(server.address) == "SERVING"
        answers = list(stub.EncodeStream(items([jpeg()] * 20), timeout=30))
        assert len(answers) == 20 and all(answer.HasField("response") for answer in answers)
        assert busy.result().width == 9000


def test_calls_over_the_limit_are_refused_before_their_message_is_read(tiny_model: Path) -> None:
    """A caller that sends nothing holds a place, for receive_seconds and no longer."""
    limited = settings(tiny_model, max_calls=1, receive_seconds=0.6)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        gate = threading.Event()
        silent = channel.stream_unary("/phs.v1.FocusEncoder/Encode").future(silence(gate), timeout=20)
        time.sleep(0.2)
        stub = pb_grpc.FocusEncoderStub(channel)
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "1 calls" in error.details()
        assert silent.exception(10).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        gate.set()
        assert stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20).width == 160


def test_a_request_is_freed_when_it_is_answered(tiny_model: Path) -> None:
    """Not when Python next collects circles of references: requests are large, and that is hundreds of MiB later."""

    def held() -> int:
        return sum(type(thing) in (pb.EncodeRequest, pb.EncodeStreamRequest) for thing in gc.get_objects())

    def serialized(cancelled: threading.Event) -> Iterator[bytes]:
        yield pb.EncodeStreamRequest(id=1, request=pb.EncodeRequest(image=b"no image")).SerializeToString()
        cancelled.wait(30)

    with ServerThread(settings(tiny_model)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        gc.collect()
        gc.disable()
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


def silence(gate: threading.Event) -> Iterator[bytes]:
    gate.wait(30)
    yield from ()


def test_bytes_in_flight_are_bounded(tiny_model: Path) -> None:
    """While one large request is worked on, a second is refused; a stream waits and completes."""
    limited = settings(tiny_model, max_in_flight_bytes=1000, max_connection_bytes=1000, decode_threads=1)
    with ServerThread(limited) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        busy = stub.Encode.future(pb.EncodeRequest(image=slow_png()), timeout=30)
        time.sleep(0.15)
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "bytes" in error.details()
        assert not busy.done()
        assert len(list(stub.EncodeStream(items([jpeg()] * 20), timeout=30))) == 20
        assert busy.result().width == 9000


# --- health, reflection, start and stop -------------------------------------------------------------------------------


def test_health_names_and_reflection(address: str, channel: grpc.Channel) -> None:
    assert [health(address, name) for name in ("", "readiness", "liveness", "phs.v1.FocusEncoder")] == ["SERVING"] * 4
    assert health(address, "nonsense") == "NOT_FOUND"
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=20)
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {"phs.v1.FocusEncoder", "grpc.health.v1.Health"}


def test_while_loading_alive_but_not_ready_and_stopped_by_sigterm_all_the_same(deit: Path) -> None:
    """DeiT takes long enough to load to be seen loading."""
    server = ServerProcess(deit)
    try:
        eventually(lambda: health(server.address, "liveness") == "SERVING", 60)
        assert health(server.address) == "NOT_SERVING"
        with open_channel(server.address) as channel:
            error = failure(lambda: pb_grpc.FocusEncoderStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=5))
            assert error.code() is grpc.StatusCode.UNAVAILABLE and "loading" in error.details()
        assert server.terminate() == 0
    finally:
        server.__exit__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_turns_health_off_and_callers_do_not_hang(tiny_model: Path) -> None:
    before = set(threading.enumerate())
    with ServerThread(settings(tiny_model)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
        (worker,) = [t for t in set(threading.enumerate()) - before if t.name.startswith("encode")]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(SystemExit))
        calls = [stub.Encode.future(pb.EncodeRequest(image=jpeg()), timeout=20) for _ in range(3)]
        # The exception is raised at the thread's next step: the first of them may still be answered.
        codes = [call.code() for call in calls]
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE} and codes.count(grpc.StatusCode.OK) < 3
        eventually(lambda: health(server.address) == "NOT_SERVING")
        assert health(server.address, "liveness") == "NOT_SERVING"
        error = failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20))
        assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(tiny_model: Path) -> None:
    with (
        ServerProcess(tiny_model, decode_threads=1, drain_seconds=20) as server,
        open_channel(server.address) as channel,
    ):
        stub = pb_grpc.FocusEncoderStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gate = threading.Event()
        stream = stub.EncodeStream(held_open(gate))
        assert next(stream).id == 0
        accepted = [stub.Encode.future(pb.EncodeRequest(image=slow_png()), timeout=30) for _ in range(3)]
        time.sleep(0.3)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 15, "an open watch or stream must not hold up the drain"
        assert [call.result().width for call in accepted] == [9000] * 3
        assert failure(lambda: next(stream)).code() is grpc.StatusCode.UNAVAILABLE
        assert (
            failure(lambda: stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=5)).code()
            is grpc.StatusCode.UNAVAILABLE
        )
        gate.set()
        watch.cancel()


def test_a_taken_port_is_an_error_that_names_it(address: str, tiny_model: Path) -> None:
    port = int(address.rpartition(":")[2])
    with (
        pytest.raises(EncoderUnavailable, match=f"127.0.0.1:{port}: is the port taken"),
        ServerThread(settings(tiny_model, port=port)),
    ):
        pass


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_ipv6_hosts(tiny_model: Path) -> None:
    with ServerThread(settings(tiny_model, host="::1")) as server, open_channel(server.address) as channel:
        assert server.address.startswith("[::1]:")
        assert pb_grpc.FocusEncoderStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=10).heads == HEADS


def test_unknown_model_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model in directory"), ServerThread(settings(tmp_path)):
        pass
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")]),
    }
    command = [sys.executable, "-m", "phs_server", "--port", "0", "--model", "nobody/no-such-model"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "phs-server: cannot load model 'nobody/no-such-model': there is no such directory here" in done.stderr
    assert "Pass a directory that holds config.json" in done.stderr


# --- metrics, logs, settings ------------------------------------------------------------------------------------------


def test_metrics_count_what_happened(tiny_model: Path) -> None:
    port = free_port()
    with ServerThread(settings(tiny_model, metrics_port=port)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda seed: stub.Encode(pb.EncodeRequest(image=jpeg(seed)), timeout=20), range(8)))
        list(stub.EncodeStream(items([jpeg(), b"broken", b"broken"]), timeout=20))
        failure(lambda: stub.Encode(pb.EncodeRequest(), timeout=20))
        failure(lambda: stub.Encode(pb.EncodeRequest(image=slow_png()), timeout=0.1))
        time.sleep(0.1)
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values["phs_images_served_total"]) == 9
        assert float(values['phs_errors_total{code="INVALID_ARGUMENT",method="EncodeStream"}']) == 2
        assert float(values['phs_errors_total{code="INVALID_ARGUMENT",method="Encode"}']) == 1
        assert float(values['phs_errors_total{code="CANCELLED",method="Encode"}']) == 1
        for stage in ("decode", "queue", "compute"):
            assert float(values[f"phs_{stage}_seconds_count"]) == 9
        assert float(values["phs_batch_images_sum"]) == 9
        assert float(values["phs_ready"]) == 1
        for queue in ("decode", "encode", "rerank"):
            assert float(values[f'phs_queue_depth{{queue="{queue}"}}']) == 0
        for room in ("bytes", "images"):
            assert float(values[f'phs_bulk_waiting{{room="{room}"}}']) == 0
        assert float(values["phs_in_flight_bytes"]) == 0 and float(values["process_resident_memory_bytes"]) > 1e7
        with (
            pytest.raises(EncoderUnavailable, match=f"metrics on 127.0.0.1:{port}"),
            ServerThread(settings(tiny_model, metrics_port=port)),
        ):
            pass


def test_json_logs_are_one_object_per_line(tiny_model: Path) -> None:
    with ServerProcess(tiny_model, log_format="json") as server:
        assert server.terminate() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert {"time", "level", "logger", "message"} <= lines[0].keys()
    assert any(line["message"].startswith("serving ") for line in lines)
    assert lines[-1]["message"] == "stopped"


def test_every_setting_is_a_flag_and_a_variable_with_its_help() -> None:
    text = make_parser({}).format_help()
    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text and f"[PHS_{name.upper()}]" in text
    chosen = parse(["--port", "7"], {"PHS_PORT": "5", "PHS_MAX_BATCH_SIZE": "3"})
    assert (chosen.port, chosen.max_batch_size, chosen.host) == (7, 3, "127.0.0.1")


def test_a_bad_variable_is_no_error_of_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHS_PRECISION", "bogus")
    commands = argparse.ArgumentParser().add_subparsers()
    add_flags(commands.add_parser("serve"))


@pytest.mark.parametrize(
    ("flags", "variables", "said"),
    [
        (["--port", "-1"], {}, "-1 is below 0"),
        (["--port", "70000"], {}, "70000 is above 65535"),
        (["--max-batch-size", "many"], {}, "'many' is not a number"),
        ([], {"PHS_MAX_CALLS": "0"}, "0 is below 1"),
        ([], {"PHS_PRECISION": "int4"}, "PHS_PRECISION: 'int4' is not one of"),
        (["--log-format", "xml"], {}, "invalid choice"),
    ],
)
def test_bad_settings_exit_with_usage(
    flags: list[str], variables: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(flags, variables)
    assert said in capsys.readouterr().err
