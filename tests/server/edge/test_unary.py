"""Encode, Rerank and GetModelInfo over real gRPC on loopback: every answer and every status."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.server.edge.support import (
    ALL,
    GRID,
    HEADS,
    HIDDEN,
    SIDE,
    box_mask,
    failure,
    float32,
    jpeg,
    open_channel,
    settings,
    slow_png,
)


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


def test_attention_mask_and_selection(stub: pb_grpc.FocusEncoderStub) -> None:
    outputs = [pb.OUTPUT_ATTENTION, pb.OUTPUT_MASK, pb.OUTPUT_HEADS]
    answer = stub.Encode(pb.EncodeRequest(image=jpeg(), mask=box_mask(), outputs=outputs), timeout=20)
    attention, mask = float32(answer.attention), float32(answer.mask)
    assert attention.shape == (HEADS, GRID, GRID) and (attention.sum((1, 2)) < 1).all()
    expected = np.zeros((GRID, GRID))
    expected[:2, :2] = 1
    np.testing.assert_allclose(mask, expected, atol=1e-6)
    np.testing.assert_allclose(float32(answer.head_scores), (attention * mask).sum((1, 2)), rtol=1e-4)
    assert (answer.region.x0, answer.region.y0, answer.region.x1, answer.region.y1) == (0, 0, 160, 120)
    assert not stub.Encode(pb.EncodeRequest(image=jpeg(), outputs=outputs), timeout=20).HasField("mask")


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
        ("too many heads in a prompt", {"prompts": [pb.Prompt(focus=pb.Focus(heads_on=5))]}, "focus: "),
        ("too many prompts", {"prompts": [pb.Prompt()] * 65}, "prompts: "),
        ("a mask beside prompts", {"prompts": [pb.Prompt()], "mask": box_mask()}, "prompts: "),
        ("a bad mask among prompts", {"prompts": [pb.Prompt(), pb.Prompt(mask=box_mask(10, 10))]}, "mask: "),
        ("a digest beside an image", {"digest": bytes(32)}, "digest: "),
        ("a digest that is none", {"image": b"", "digest": bytes(31)}, "digest: "),
    ]


@pytest.mark.parametrize(
    ("changes", "field"), [case[1:] for case in bad_requests()], ids=[c[0] for c in bad_requests()]
)
def test_invalid_argument_names_the_field(
    stub: pb_grpc.FocusEncoderStub, changes: dict[str, object], field: str
) -> None:
    request = {"image": jpeg(), **changes}
    error = failure(lambda: stub.Encode(pb.EncodeRequest(**request), timeout=20))
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
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and len(error.details()) < 200
    assert error.details().startswith("embeddings: ") and "shape" in error.details()


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
        lambda: stub.Readout(pb.ReadoutRequest(expected_fingerprint="abc"), timeout=20),
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
