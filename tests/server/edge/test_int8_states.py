"""Rerank and Readout of int8 states over real gRPC: the scores of the same states as float16, and every refusal."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import numpy as np
import pytest

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.int8_states import Int8States
from tests.server.edge.support import HEADS, HIDDEN, failure, float32

RNG = np.random.default_rng(0)
EXACT = RNG.standard_normal((5, 2, HIDDEN)).astype(np.float16)
STATES = Int8States.of(EXACT)
EMBEDDINGS = RNG.standard_normal((3, HIDDEN)).astype(np.float32)
WEIGHTS = RNG.random((3, HEADS), np.float32)
Request = pb.RerankRequest | pb.ReadoutRequest


def rerank(states: object = STATES) -> pb.RerankRequest:
    return wire.rerank_request(EMBEDDINGS, WEIGHTS, states)


def readout(states: object = STATES) -> pb.ReadoutRequest:
    return wire.readout_request(states, WEIGHTS[:1])


def test_scores_and_embeddings_are_those_of_the_same_states_as_float16(stub: pb_grpc.FocusEncoderStub) -> None:
    scores = [float32(stub.Rerank(rerank(some), timeout=20).scores) for some in (STATES, STATES.to_float16(), EXACT)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    # The rounding shows, and is small.
    assert 1e-6 < np.abs(scores[0] - scores[2]).max() < 0.02
    found = [float32(stub.Readout(readout(some), timeout=20).embeddings) for some in (STATES, STATES.to_float16())]
    np.testing.assert_allclose(*found, atol=1e-6)


def test_a_message_of_int8_is_about_half() -> None:
    many = Int8States.of(RNG.standard_normal((1000, 2, 768)).astype(np.float16))
    small, large = (wire.readout_request(some, WEIGHTS[:1]).ByteSize() for some in (many, many.to_float16()))
    assert 0.5 < small / large < 0.52


def test_model_info_says_what_the_server_reads(stub: pb_grpc.FocusEncoderStub) -> None:
    info = stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=20)
    assert list(info.state_formats) == [pb.STATE_FORMAT_FLOAT16, pb.STATE_FORMAT_INT8]
    assert wire.info_from_pb(info).state_formats == ("float16", "int8")
    # Servers before the choice name none, and later ones may name what is not known here.
    assert wire.info_from_pb(pb.ModelInfo()).state_formats == ("float16",)
    assert wire.info_from_pb(pb.ModelInfo(state_formats=[99, 2])).state_formats == ("float16", "int8")


def scales(value: float, shape: tuple[int, ...] = (5, 2, 1), dtype: type = np.float16) -> pb.Tensor:
    array = np.ones(shape, dtype)
    array[0, -1, -1] = value
    return wire.tensor_to_pb(array)


def put(field: str, tensor: pb.Tensor) -> Callable[[Request], None]:
    return lambda request: getattr(request, field).CopyFrom(tensor)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("state_scales", lambda request: request.ClearField("state_scales")),
        ("state_scales", put("state_scales", scales(np.nan))),
        ("state_scales", put("state_scales", scales(np.inf))),
        ("state_scales", put("state_scales", scales(-1))),
        ("state_scales", put("state_scales", scales(512))),
        ("state_scales", put("state_scales", scales(1, (4, 2, 1)))),
        ("state_scales", put("state_scales", scales(1, (5, 2, 2)))),
        ("state_scales", put("state_scales", scales(1, (5, 1, 1)))),
        ("state_scales", put("state_scales", scales(1, dtype=np.float32))),
        ("state_scales", put("state_scales", pb.Tensor(dtype=2, shape=[5, 2, 1], data=b"\0" * 19))),
        ("state_scales", put("states", wire.tensor_to_pb(EXACT))),
        ("states", put("states", wire.tensor_to_pb(np.ones((5, 2, HIDDEN + 1), np.int8)))),
        ("states", put("states", wire.tensor_to_pb(np.ones((5, 3, HIDDEN), np.int8)))),
        ("states", put("states", pb.Tensor(dtype=3, shape=[2**32 - 1, 2, HIDDEN], data=b"\0" * 96))),
    ],
)
@pytest.mark.parametrize("make", [rerank, readout])
def test_states_that_cannot_be_are_named(
    stub: pb_grpc.FocusEncoderStub, make: Callable[[], Request], field: str, change: Callable[[Request], None]
) -> None:
    request = make()
    change(request)
    call = stub.Rerank if isinstance(request, pb.RerankRequest) else stub.Readout
    error = failure(lambda: call(request, timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: ")
