"""States as int8 through both clients: split like others, and sent as float16 to a server that is older than int8."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from phs_milvus.client import requests
from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.types import Limits
from tests.client.support import HEADS, HIDDEN, Scripted

RNG = np.random.default_rng(0)
STATES = Int8States.of(RNG.standard_normal((40, 2, HIDDEN)).astype(np.float16))
EMBEDDINGS = RNG.standard_normal((2, HIDDEN)).astype(np.float32)
WEIGHTS = RNG.random((2, HEADS), np.float32)


class Older(Scripted):
    """A server without state_formats, which keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[pb.RerankRequest | pb.ReadoutRequest] = []

    def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        self.sent.append(request)
        shape = request.embeddings.shape[0], request.states.shape[0]
        return pb.RerankResponse(scores=wire.tensor_to_pb(np.zeros(shape, np.float32)))

    def Readout(self, request: pb.ReadoutRequest, context: grpc.ServicerContext) -> pb.ReadoutResponse:
        self.sent.append(request)
        embeddings = np.full((request.states.shape[0], 4), 0.5, np.float32)
        return pb.ReadoutResponse(embeddings=wire.tensor_to_pb(embeddings))


def both(address: str, states: object) -> list[np.ndarray]:
    """Scores and embeddings by the one client, then by the other."""

    async def asynchronously() -> list[np.ndarray]:
        async with AsyncEncoder(address) as encoder:
            return [await encoder.rerank(EMBEDDINGS, WEIGHTS, states), await encoder.readout(states, WEIGHTS[0])]

    with Encoder(address) as encoder:
        found = [encoder.rerank(EMBEDDINGS, WEIGHTS, states), encoder.readout(states, WEIGHTS[0])]
    return found + asyncio.run(asynchronously())


def test_both_clients_give_what_float16_gives(address: str) -> None:
    for ours, theirs in zip(both(address, STATES), both(address, STATES.to_float16()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_large_calls_are_split(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    once = encoder.rerank(EMBEDDINGS, WEIGHTS, STATES), encoder.readout(STATES, WEIGHTS[0])
    monkeypatch.setattr(requests, "MOST_READOUTS", 14)
    limits = Limits(message_bytes=4096 + 3000)
    sent = [request for _, request in requests.rerank_requests(EMBEDDINGS, WEIGHTS, STATES, "", limits)[1]]
    assert len(sent) == 6 and sum(request.states.shape[0] for request in sent) == 2 * len(STATES)
    assert all(request.states.dtype == pb.DTYPE_INT8 and request.ByteSize() < 4096 for request in sent)
    np.testing.assert_allclose(encoder.rerank(EMBEDDINGS, WEIGHTS, STATES), once[0], atol=1e-6)
    np.testing.assert_allclose(encoder.readout(STATES, WEIGHTS[0]), once[1], atol=1e-6)


def test_an_older_server_is_sent_float16(scripted: Callable[..., tuple[Scripted, str]]) -> None:
    service, address = scripted(service=Older())
    states = Int8States.of(RNG.standard_normal((3, 2, 4)).astype(np.float16))
    with Encoder(address) as encoder:
        encoder.rerank(np.ones((1, 4)), np.ones((1, 2)), states)
        encoder.readout(states, np.ones(2))

    async def asynchronously() -> None:
        async with AsyncEncoder(address) as encoder:
            await encoder.rerank(np.ones((1, 4)), np.ones((1, 2)), states)
            await encoder.readout(states, np.ones(2))

    asyncio.run(asynchronously())
    assert len(service.sent) == 4
    for request in service.sent:
        assert not request.HasField("state_scales")
        found = wire.tensor_from_pb(request.states, "states", np.float16, [3, 2, 4])
        assert np.array_equal(found, states.to_float16())


def test_no_states_are_refused(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="at least one state"):
        encoder.rerank(EMBEDDINGS, WEIGHTS, STATES[:0])
