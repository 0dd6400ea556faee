"""Single calls of Encoder: results, errors, retries, several addresses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import (
    DeadlineExceeded,
    EncoderBusy,
    EncoderError,
    EncoderUnavailable,
    ImageError,
    InvalidInput,
    ModelMismatch,
    PhsError,
    PromptError,
)
from phs_milvus.contract.types import Focus
from phs_milvus.pointing.prompts import Box
from tests.client.support import BUSY, GONE, HEADS, HIDDEN, UNIT, Scripted
from tests.servers import free_port


def test_encode_from_any_source_gives_the_same(encoder: Encoder, images: list[Path], embeddings: np.ndarray) -> None:
    picture = Image.open(images[0])
    for source in (str(images[0]), images[0].read_bytes(), picture, np.asarray(picture)):
        encoding = encoder.encode(source)
        np.testing.assert_allclose(encoding.embedding, embeddings[0], atol=1e-5)
        assert (encoding.width, encoding.height, encoding.state, encoding.timings) == (160, 120, None, None)


class Slow(Scripted):
    """Scores and reads out a few thousand states at a time, each time in a quarter of a second."""

    calls = 0

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        info = super().GetModelInfo(request, context)
        info.limits.message_bytes = 2**16
        return info

    def Rerank(self, request: pb.RerankRequest, context: grpc.ServicerContext) -> pb.RerankResponse:
        self._work()
        return pb.RerankResponse(scores=wire.tensor_to_pb(np.zeros((1, request.states.shape[0]), np.float32)))

    def Readout(self, request: pb.ReadoutRequest, context: grpc.ServicerContext) -> pb.ReadoutResponse:
        self._work()
        return pb.ReadoutResponse(embeddings=wire.tensor_to_pb(np.tile(UNIT, (request.states.shape[0], 1))))

    def _work(self) -> None:
        self.calls += 1
        time.sleep(0.25)


def test_a_timeout_is_of_all_requests_of_a_call(scripted: Callable[..., tuple[Scripted, str]]) -> None:
    service, address = scripted(service=Slow())
    states, weights = np.ones((14_000, 2, 4), np.float16), np.ones((14_000, 2), np.float32)

    async def asynchronously() -> None:
        async with AsyncEncoder(address) as encoder:
            await encoder.fetch_info()
            with pytest.raises(DeadlineExceeded):
                await encoder.rerank(UNIT[None], weights[:1], states, timeout=0.6)
            with pytest.raises(DeadlineExceeded):
                await encoder.readout(states, weights, timeout=0.6)

    with Encoder(address, timeout=1) as encoder:
        encoder.fetch_info(timeout=30)
        assert len(encoder.readout(states, weights)) == 14_000 and service.calls >= 5  # each within the Encoder's own
        with pytest.raises(DeadlineExceeded):
            encoder.rerank(UNIT[None], weights[:1], states, timeout=0.6)
        with pytest.raises(DeadlineExceeded):
            encoder.readout(states, weights, timeout=0.6)
    asyncio.run(asynchronously())


def test_encode_with_a_prompt_and_all_outputs(encoder: Encoder, images: list[Path]) -> None:
    outputs = Outputs(state=True, head_weights=True, timings=True)
    encoding = encoder.encode(images[0], Box(0, 0, 80, 60), focus=Focus(heads_on=1), outputs=outputs)
    assert encoding.state.shape == (2, HIDDEN) and encoding.state.dtype == np.float16
    assert sorted(encoding.head_weights) == [0, 0, 0, HEADS] and encoding.timings.compute_ms > 0
    explanation = encoder.explain(images[0], Box(0, 0, 80, 60), focus=Focus(heads_on=1))
    assert explanation.selected_heads == [int(np.argmax(encoding.head_scores))]
    assert encoder.info.heads == HEADS and encoder.info is encoder.info


def test_wrong_input_is_reported_before_or_by_the_server(encoder: Encoder, images: list[Path]) -> None:
    with pytest.raises(ImageError, match="not found"):
        encoder.encode("nowhere.jpg")
    with pytest.raises(PromptError):
        encoder.encode(images[0], Box(500, 500, 600, 600))
    with pytest.raises(InvalidInput, match="model has 4") as caught:
        encoder.encode(images[0], Box(0, 0, 9, 9), focus=Focus(heads_on=9))
    assert caught.value.field == "focus"
    data = images[0].read_bytes()
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        encoder.encode(data[: len(data) // 2])
    assert caught.value.field == "image"


def test_another_model_is_a_mismatch(address: str, encoder: Encoder, images: list[Path]) -> None:
    with Encoder(address, expected_fingerprint="f" * 64) as other:
        with pytest.raises(ModelMismatch, match="fingerprint"):
            other.encode(images[0])
        (result,) = other.encode_many([images[0]])
        assert isinstance(result, ModelMismatch)
        with pytest.raises(ModelMismatch, match="fingerprint"):
            other.info  # noqa: B018
    with Encoder(address, expected_fingerprint=encoder.info.fingerprint) as same:
        assert same.encode(images[0]).width == 160


def test_nobody_there(images: list[Path]) -> None:
    address = f"127.0.0.1:{free_port()}"
    with Encoder(address, timeout=2) as encoder:
        with pytest.raises((EncoderUnavailable, DeadlineExceeded), match=address):
            encoder.encode(images[0])
        with pytest.raises(EncoderError, match=address):
            list(encoder.encode_many(images, timeout=1))


def test_deadline(encoder: Encoder, images: list[Path]) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        encoder.encode(images[0], timeout=0.0005)


@pytest.mark.parametrize("code", [BUSY, GONE])
def test_transient_statuses_are_retried(scripted: Callable[..., tuple[Scripted, str]], code: grpc.StatusCode) -> None:
    service, address = scripted((code, ()), (code, ()))
    with Encoder(address) as encoder:
        assert encoder.info.model_id == "scripted"
    assert len(service.arrivals) == 3


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code not in (BUSY, GONE, grpc.StatusCode.OK)])
def test_other_statuses_are_not(scripted: Callable[..., tuple[Scripted, str]], code: grpc.StatusCode) -> None:
    service, address = scripted((code, ()))
    with Encoder(address) as encoder, pytest.raises(PhsError, match="scripted"):
        encoder.info  # noqa: B018
    assert len(service.arrivals) == 1


def test_retries_end(scripted: Callable[..., tuple[Scripted, str]]) -> None:
    service, address = scripted(*[(BUSY, (("grpc-retry-pushback-ms", "1"),))] * 9)
    with Encoder(address) as encoder, pytest.raises(EncoderBusy, match="scripted"):
        encoder.info  # noqa: B018
    assert len(service.arrivals) == 5


def test_the_servers_hint_replaces_the_clients_pause(scripted: Callable[..., tuple[Scripted, str]]) -> None:
    """grpc-retry-pushback-ms is honoured: 700 ms, where the client's own first pause is at most 120 ms."""
    service, address = scripted((BUSY, (("grpc-retry-pushback-ms", "700"),)))
    with Encoder(address) as encoder:
        assert encoder.info.model_id == "scripted"
    assert service.arrivals[1] - service.arrivals[0] > 0.65


def test_several_addresses_are_used_in_turn_and_a_dead_one_is_skipped(
    scripted: Callable[..., tuple[Scripted, str]],
) -> None:
    (first, one), (second, two) = scripted(), scripted()
    with Encoder([one, f"127.0.0.1:{free_port()}", two]) as encoder:
        for _ in range(20):
            encoder.fetch_info()
        assert encoder.address.count("127.0.0.1") == 3
    assert len(first.arrivals) + len(second.arrivals) == 20
    assert min(len(first.arrivals), len(second.arrivals)) >= 5


@pytest.mark.parametrize("address", [[], ["localhost"], ["a:b"], [":1", "x:2"]])
def test_addresses_that_cannot_be_used(address: list[str]) -> None:
    if len(address) == 1:
        address = [*address, "127.0.0.1:1"]
    with pytest.raises(InvalidInput) as caught:
        Encoder(address)
    assert caught.value.field == "address"
