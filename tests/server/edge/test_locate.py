"""Locate on the wire: what to look for comes first, images fail alone, and held pictures are found by digest."""

from __future__ import annotations

import hashlib

import grpc
import numpy as np
import pytest

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.location import LocateTarget
from tests.server.edge.support import GRID, HEADS, HIDDEN, box_mask, failure, float32, jpeg

NOT_FOUND, INVALID = (code.value[0] for code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT))


@pytest.fixture
def query(stub: pb_grpc.FocusEncoderStub) -> pb.LocateRequest:
    outputs = [pb.OUTPUT_EMBEDDING, pb.OUTPUT_HEADS, pb.OUTPUT_REGION_FEATURE]
    answer = stub.Encode(pb.EncodeRequest(image=jpeg(seed=3), mask=box_mask(), outputs=outputs), timeout=20)
    target = LocateTarget(*(float32(part) for part in (answer.embedding, answer.head_weights, answer.region_feature)))
    return wire.locate_query(target)


def test_images_are_answered_and_fail_alone(stub: pb_grpc.FocusEncoderStub, query: pb.LocateRequest) -> None:
    held = jpeg(seed=31)
    stub.Encode(pb.EncodeRequest(image=held), timeout=20)
    messages = [
        query,
        pb.LocateRequest(id=1, image=jpeg(seed=3)),
        pb.LocateRequest(id=2, image=b"no image"),
        pb.LocateRequest(id=3, digest=hashlib.sha256(held).digest()),
        pb.LocateRequest(id=4, digest=bytes(32)),
        pb.LocateRequest(id=5),
        pb.LocateRequest(id=6, query=query.query),
        pb.LocateRequest(id=7, image=jpeg(seed=4), digest=bytes(32)),
    ]
    answers = {answer.id: answer for answer in stub.Locate(iter(messages), timeout=20)}
    assert sorted(answers) == [1, 2, 3, 4, 5, 6, 7]
    for item in (1, 3):
        found = answers[item].location
        evidence = float32(found.evidence)
        assert evidence.shape == (GRID, GRID) and abs(float(evidence.mean())) < 1e-4
        row, column = divmod(int(evidence.argmax()), GRID)
        assert (found.peak_x, found.peak_y) == ((column + 0.5) * 160 / GRID, (row + 0.5) * 120 / GRID)
        assert (found.width, found.height) == (160, 120) and 1 <= len(found.boxes) <= 5
        assert [box.score for box in found.boxes] == sorted((box.score for box in found.boxes), reverse=True)
    errors = {item: answers[item].error for item in (2, 4, 5, 6, 7)}
    assert [errors[item].code for item in (2, 4, 5, 6, 7)] == [INVALID, NOT_FOUND, INVALID, INVALID, INVALID]
    assert [errors[item].message.partition(":")[0] for item in (2, 5, 6, 7)] == ["image", "image", "query", "digest"]


def test_the_number_and_size_of_boxes(stub: pb_grpc.FocusEncoderStub, query: pb.LocateRequest) -> None:
    areas = []
    for threshold in (0.3, 0.9):
        query.query.threshold, query.query.limit = threshold, 1
        (answer,) = stub.Locate(iter([query, pb.LocateRequest(image=jpeg(seed=3))]), timeout=20)
        (box,) = answer.location.boxes
        areas.append((box.region.x1 - box.region.x0) * (box.region.y1 - box.region.y0))
    assert areas[0] > areas[1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda query: query.ClearField("embedding"), "embedding"),
        (lambda query: query.embedding.CopyFrom(wire.tensor_to_pb(np.zeros(HIDDEN, np.float32))), "embedding"),
        (lambda query: query.embedding.CopyFrom(wire.tensor_to_pb(np.ones(HIDDEN + 1, np.float32))), "embedding"),
        (lambda query: query.head_weights.CopyFrom(wire.tensor_to_pb(np.ones(HEADS - 1, np.float32))), "head_weights"),
        (lambda query: query.head_weights.CopyFrom(wire.tensor_to_pb(np.full(HEADS, 1e6, np.float32))), "head_weights"),
        (lambda query: query.region_feature.CopyFrom(wire.tensor_to_pb(np.ones(3, np.float32))), "region_feature"),
        (
            lambda query: query.all_heads_embedding.CopyFrom(wire.tensor_to_pb(np.full(HIDDEN, np.nan, np.float32))),
            "all_heads_embedding",
        ),
        (lambda query: setattr(query, "threshold", 1.0), "threshold"),
        (lambda query: setattr(query, "threshold", float("nan")), "threshold"),
        (lambda query: setattr(query, "limit", 1000), "limit"),
    ],
)
def test_a_query_that_does_not_fit_ends_the_call(
    stub: pb_grpc.FocusEncoderStub, query: pb.LocateRequest, change: object, field: str
) -> None:
    change(query.query)  # type: ignore[operator]
    error = failure(lambda: list(stub.Locate(iter([query, pb.LocateRequest(image=jpeg())]), timeout=20)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: ")


def test_what_to_look_for_comes_first_and_alone(stub: pb_grpc.FocusEncoderStub, query: pb.LocateRequest) -> None:
    both = pb.LocateRequest(query=query.query, image=jpeg())
    for messages in ([pb.LocateRequest(image=jpeg())], [both], [pb.LocateRequest()]):
        error = failure(lambda messages=messages: list(stub.Locate(iter(messages), timeout=20)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith("query: ")
    query.query.expected_fingerprint = "abc"
    error = failure(lambda: list(stub.Locate(iter([query]), timeout=20)))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_readouts_are_the_embeddings_of_states(stub: pb_grpc.FocusEncoderStub) -> None:
    outputs = [pb.OUTPUT_EMBEDDING, pb.OUTPUT_STATE, pb.OUTPUT_HEADS]
    focused = [
        stub.Encode(pb.EncodeRequest(image=jpeg(seed=seed), mask=box_mask(), outputs=outputs), timeout=20)
        for seed in range(3)
    ]
    states = np.stack([np.frombuffer(one.state.data, np.float16).reshape(2, HIDDEN) for one in focused])
    weights = np.stack([float32(one.head_weights) for one in focused])
    found = float32(stub.Readout(wire.readout_request(states, weights), timeout=20).embeddings)
    assert np.abs(found - np.stack([float32(one.embedding) for one in focused])).max() < 2e-3
    shared = float32(stub.Readout(wire.readout_request(states, weights[:1]), timeout=20).embeddings)
    assert np.abs(shared[0] - found[0]).max() < 1e-6 and np.abs(shared[1] - found[1]).max() > 1e-4
    for changes, field in (
        ((states[:0], weights), "states"),
        ((states, weights[:2]), "head_weights"),
        ((states, weights[:0]), "head_weights"),
        ((states, weights[:, :2]), "head_weights"),
        ((states, 1e6 * np.ones_like(weights)), "head_weights"),
    ):
        error = failure(lambda changes=changes: stub.Readout(wire.readout_request(*changes), timeout=20))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: ")
