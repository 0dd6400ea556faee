"""Hostile and odd requests through one stream: each answered as it must be, good ones untouched, memory flat."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.types import Limits
from tests.hostile.make import ACCEPTED, EITHER, Case, make
from tests.servers import ServerProcess, health

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
# The allocator's caches make resident memory swing by some percent between equal rounds; a leak only grows.
GROWTH = 1.15


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return make(seed=0)


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_model, precision="float32") as server:
        yield server


def good_image(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def request_of(case: Case) -> pb.EncodeRequest:
    request = pb.EncodeRequest(image=case.image, focus=pb.Focus(heads_on=case.heads_on))
    if case.mask is not None:
        width, height, runs = case.mask
        request.mask.CopyFrom(pb.Mask(width=width, height=height, runs=runs))
    return request


def run(address: str, requests: list[pb.EncodeRequest]) -> dict[int, pb.EncodeStreamResponse]:
    """Answers by position; each exactly once. Health is looked at on the way."""
    answers: dict[int, pb.EncodeStreamResponse] = {}
    options = [("grpc.max_send_message_length", Limits.message_bytes)]
    with grpc.insecure_channel(address, options) as channel:
        messages = (pb.EncodeStreamRequest(id=index, request=request) for index, request in enumerate(requests))
        for answer in pb_grpc.FocusEncoderStub(channel).EncodeStream(messages, timeout=240):
            assert answer.id not in answers
            answers[answer.id] = answer
            if len(answers) % 100 == 0:
                assert health(address) == "SERVING"
    assert len(answers) == len(requests)
    return answers


def embedding(answer: pb.EncodeStreamResponse) -> np.ndarray:
    return np.frombuffer(answer.response.embedding.data, np.float32)


def verdict(answer: pb.EncodeStreamResponse) -> str:
    """ "accepted", or the field that INVALID_ARGUMENT names."""
    if answer.HasField("response"):
        found = embedding(answer)
        assert np.isfinite(found).all() and np.linalg.norm(found) == pytest.approx(1, abs=1e-3)
        return ACCEPTED
    field, colon, text = answer.error.message.partition(": ")
    return field if answer.error.code == INVALID and colon and text else f"{answer.error.code} {answer.error.message}"


def test_there_are_many_and_they_are_the_same_every_time(cases: list[Case]) -> None:
    assert len(cases) > 300 and len({case.name for case in cases}) == len(cases)
    assert [case.image for case in make(seed=0)] == [case.image for case in cases]
    expected = [case.expected for case in cases]
    assert expected.count(ACCEPTED) > 80 and expected.count("image") > 100 and expected.count("mask") > 15


def test_each_is_answered_as_it_must_be_and_harms_no_other(server: ServerProcess, cases: list[Case]) -> None:
    """Every case is followed by a good image, whose embedding must be that of a run without hostile ones."""
    good = [pb.EncodeRequest(image=good_image(index % 20)) for index in range(len(cases))]
    clean = [embedding(answer) for _, answer in sorted(run(server.address, good[:20]).items())]
    mixed = [request for case, other in zip(cases, good, strict=True) for request in (request_of(case), other)]
    memory = []
    for _ in range(4):
        answers = run(server.address, mixed)
        for index, case in enumerate(cases):
            found = verdict(answers[2 * index])
            allowed = (ACCEPTED, "image") if case.expected == EITHER else (case.expected,)
            assert found in allowed, f"{case.name}: expected {case.expected}, got {found}"
            np.testing.assert_allclose(embedding(answers[2 * index + 1]), clean[index % 20], atol=1e-5)
        time.sleep(0.5)
        memory.append(server.resident_mib)
    # The first rounds fill pools and caches; the ones after must leave memory where it was.
    assert memory[3] < GROWTH * max(memory[1:3]), f"resident MiB after each round: {memory}"
    assert health(server.address) == health(server.address, "liveness") == "SERVING"
    assert server.process.poll() is None


def test_messages_that_are_no_requests(server: ServerProcess) -> None:
    """Bytes that are no protobuf, in every method; the server goes on."""
    noise = np.random.default_rng(0).bytes(10_000)
    with grpc.insecure_channel(server.address) as channel:
        for method in ("Encode", "Rerank", "Readout"):
            for data in (b"\xff" * 10, noise, noise[:1]):
                with pytest.raises(grpc.RpcError) as caught:
                    channel.unary_unary(f"/phs.v1.FocusEncoder/{method}")(data, timeout=20)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/phs.v1.FocusEncoder/Nothing")(b"", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert health(server.address) == "SERVING"
