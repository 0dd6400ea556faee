"""Reranker: scores by the definition, and messages split by their size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from phs_milvus.client import requests
from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import wire
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Focus, Limits
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.rerank import Reranker
from phs_server.model.checkpoint import load
from tests.client.support import HEADS, HIDDEN


@pytest.fixture(scope="module")
def images(make_images: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 24)


def test_reranker_scores_by_the_definition(encoder: Encoder, tiny_model: Path, images: list[Path]) -> None:
    """Cosine of the query and each state read out, in plain torch, with the query's head weights."""
    reranker = Reranker(encoder)
    query = reranker.query(images[0], Box(0, 0, 80, 60), focus=Focus.paper(2))
    encodings = list(encoder.encode_many(images, outputs=Outputs(state=True)))
    states = np.stack([encoding.state for encoding in encodings])
    ranking = reranker.rerank_states(query, states, top_k=7)

    model = load(str(tiny_model)).backbone
    residual, heads = torch.tensor(states.astype(np.float32)).unbind(1)
    weights = torch.tensor(query.head_weights)[None]
    with torch.no_grad():
        read_out = torch.nn.functional.normalize(model.readout(residual, heads, weights), dim=-1).numpy()
    expected = read_out @ query.embedding
    np.testing.assert_array_equal(ranking.indices, np.argsort(-expected, kind="stable")[:7])
    np.testing.assert_allclose(ranking.scores, np.sort(expected)[::-1][:7], atol=1e-4)
    assert len(ranking) == 7 and ranking.indices[0] == 0 and ranking.scores[0] == pytest.approx(1, abs=1e-4)


def test_reranking_images_equals_reranking_their_states(encoder: Encoder, images: list[Path]) -> None:
    reranker = Reranker(encoder)
    query = reranker.query(images[3])
    states = np.stack([e.state for e in encoder.encode_many(images[:8], outputs=Outputs(state=True))])
    by_state = reranker.rerank_states(query, states)
    by_image = reranker.rerank_images(query, [*images[:4], b"broken", *images[4:8]])
    moved = [index + (index > 3) for index in by_state.indices]
    assert by_image.indices.tolist() == moved and list(by_image.failed) == [4]
    np.testing.assert_allclose(by_image.scores, by_state.scores, atol=1e-5)


def test_reranker_edges(encoder: Encoder, images: list[Path]) -> None:
    reranker = Reranker(encoder)
    query = reranker.query(images[0])
    assert len(reranker.rerank_states(query, np.empty((0, 2, HIDDEN), np.float16))) == 0
    assert len(reranker.rerank_images(query, [b"broken"])) == 0
    same = np.stack([np.ones((2, HIDDEN), np.float16)] * 4)
    assert reranker.rerank_states(query, same).indices.tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidInput, match="top_k|at least 1"):
        reranker.rerank_states(query, same, top_k=0)
    with pytest.raises(InvalidInput, match="no head weights"):
        reranker.rerank_states(encoder.encode(images[0]), same)
    with pytest.raises(InvalidInput) as caught:
        encoder.rerank(query.embedding[None], query.head_weights[None], np.ones((1, 2, HIDDEN + 1), np.float16))
    assert caught.value.field == "states"


def test_a_rerank_over_one_message_is_split(encoder: Encoder, images: list[Path]) -> None:
    """400,000 states of this size are 77 MB, more than a message may hold."""
    query = Reranker(encoder).query(images[0])
    states = np.random.default_rng(0).standard_normal((1000, 2, HIDDEN)).astype(np.float16)
    many = np.tile(states, (400, 1, 1))
    scores = encoder.rerank(query.embedding[None], query.head_weights[None], many)
    once = encoder.rerank(query.embedding[None], query.head_weights[None], states)
    np.testing.assert_allclose(scores, np.tile(once, (1, 400)), atol=1e-4)


def test_a_rerank_is_split_by_readouts_and_by_the_size_of_its_answer(
    encoder: Encoder, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((9, HIDDEN)).astype(np.float32)
    weights = np.repeat(rng.random((3, HEADS), np.float32), 3, axis=0)
    states = rng.standard_normal((7, 2, HIDDEN)).astype(np.float16)
    once = encoder.rerank(embeddings, weights, states)

    async def asynchronously() -> np.ndarray:
        async with AsyncEncoder(address) as other:
            return await other.rerank(embeddings, weights, states)

    for readouts, message_bytes, blocks in ((14, 2**26, 2), (3, 2**26, 9), (100, 4096 + 2000, 6)):
        monkeypatch.setattr(requests, "MOST_READOUTS", readouts)
        limits = Limits(message_bytes=message_bytes)
        sent = [request for _, request in requests.rerank_requests(embeddings, weights, states, "", limits)[1]]
        assert len(sent) == blocks
        for request in sent:
            asked = len(np.unique(wire.tensor_from_pb(request.head_weights, "", np.float32, [None, HEADS]), axis=0))
            assert asked * request.states.shape[0] <= readouts and request.ByteSize() <= message_bytes
        np.testing.assert_allclose(encoder.rerank(embeddings, weights, states), once, atol=1e-5)
        np.testing.assert_allclose(asyncio.run(asynchronously()), once, atol=1e-5)


def test_no_answer_of_a_rerank_is_over_the_message_limit() -> None:
    """3,821 queries of 4,952 states, all with one choice of heads, would be answered with 75.7 MB."""
    embeddings, weights = np.zeros((3821, 8), np.float32), np.ones((3821, 2), np.float32)
    scores, messages = requests.rerank_requests(embeddings, weights, np.zeros((4952, 2, 4), np.float16), "", Limits())
    filled = np.zeros(scores.shape, np.int8)
    for block, request in messages:
        assert 4 * request.embeddings.shape[0] * request.states.shape[0] < Limits().message_bytes
        filled[block] += 1
    assert (filled == 1).all()
