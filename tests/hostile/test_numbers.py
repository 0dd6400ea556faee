"""Numbers too large to compute with are refused by name, and what is not finite never leaves as an answer."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from phs_milvus.client import answers
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import ModelError
from phs_milvus.contract.types import RerankInputs
from phs_server.config import Settings
from phs_server.flow.pipeline import Pipeline
from tests.server.flow.support import encode

HIDDEN, HEADS = 48, 4


def rerank_request(weight: float = 1, embedding: float = 1, state: float = 1) -> pb.RerankRequest:
    """Two good queries but for the last number of the second, and three states."""
    embeddings, weights = np.ones((2, HIDDEN), np.float32), np.ones((2, HEADS), np.float32)
    weights[1, -1], embeddings[1, -1] = weight, embedding
    return wire.rerank_request(embeddings, weights, np.full((3, 2, HIDDEN), state, np.float16))


def png() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def encode_request(**focus: float) -> pb.EncodeRequest:
    mask = pb.Mask(width=64, height=48, runs=[0, 64 * 24, 64 * 24])
    return pb.EncodeRequest(image=png(), mask=mask, focus=pb.Focus(**focus))


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[pb_grpc.FocusEncoderStub]:
    with grpc.insecure_channel(address) as channel:
        yield pb_grpc.FocusEncoderStub(channel)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        *(("head_weights", rerank_request(weight=value)) for value in (1.1e4, -1e30, 3e38, np.inf, np.nan)),
        *(("embeddings", rerank_request(embedding=value)) for value in (1e30, -3e38, np.inf, np.nan)),
        (
            "embeddings",
            wire.rerank_request(
                *(np.zeros((1, n), np.float32) for n in (HIDDEN, HEADS)), np.zeros((1, 2, HIDDEN), np.float16)
            ),
        ),
        ("states", rerank_request(state=np.inf)),
        *(("focus", encode_request(fovea=value)) for value in (1.1e3, 3e38, np.inf, np.nan, -1)),
        *(("focus", encode_request(zoom=value)) for value in (np.inf, np.nan, -1)),
        *(("focus", encode_request(attention_shift=value)) for value in (np.inf, np.nan, 1e30)),
    ],
)
def test_refused_by_name(stub: pb_grpc.FocusEncoderStub, field: str, request_: pb.RerankRequest) -> None:
    call = stub.Rerank if isinstance(request_, pb.RerankRequest) else stub.Encode
    with pytest.raises(grpc.RpcError) as error:
        call(request_, timeout=30)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(f"{field}: ") and len(error.value.details()) < 200


def test_the_largest_numbers_taken_are_computed_with(stub: pb_grpc.FocusEncoderStub) -> None:
    for values in ((1e4, 1, 65504), (-1e4, 1e9, -65504), (0, 1e-9, 0)):
        request = rerank_request(*values)
        scores = answers.scores(stub.Rerank(request, timeout=30), request, "the server")
        assert np.isfinite(scores).all() and scores.any(axis=1).all()
    for focus in ({"fovea": 1e3}, {"zoom": 3e38}, {"attention_shift": 1.0, "fovea": 1e3, "zoom": 1.0}):
        answer = stub.Encode(encode_request(**focus), timeout=30).embedding
        embedding = wire.tensor_from_pb(answer, "embedding", np.float32, [None])
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-3)


def test_a_model_that_gives_nan_answers_with_an_error(tiny_model: Path) -> None:
    threads = torch.get_num_threads()
    pipeline = Pipeline(Settings(model=str(tiny_model), precision="float32"))
    try:
        readout = pipeline._engines[0].backbone.readout
        readout.final_norm.weight.fill_(torch.inf)
        with pytest.raises(ModelError, match="embedding that is not finite .* float32; try"):
            asyncio.run(encode(pipeline, png()))
        inputs = RerankInputs(
            np.ones((1, HIDDEN), np.float32), np.ones((1, HEADS), np.float32), np.ones((3, 2, HIDDEN), np.float16)
        )
        with pytest.raises(ModelError, match="scores of the model in float32 are not finite"):
            asyncio.run(pipeline.rerank(inputs))
    finally:
        pipeline.close(timeout=5)
        torch.set_num_threads(threads)
