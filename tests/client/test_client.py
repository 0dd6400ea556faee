"""Encoder, AsyncEncoder and Reranker against real servers: results, errors, retries, restarts, addresses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from PIL import Image

from phs_milvus.client import requests
from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
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
from phs_milvus.contract.types import Encoding, Focus, Limits
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.rerank import Reranker
from phs_server.app import ServerThread
from phs_server.config import Settings
from phs_server.model.checkpoint import load
from tests.servers import ServerProcess, free_port

HEADS, HIDDEN = 4, 48


@pytest.fixture(scope="module")
def images(make_images: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture(scope="module")
def embeddings(encoder: Encoder, images: list[Path]) -> np.ndarray:
    """[24, E], each from a call of its own."""
    return np.stack([encoder.encode(path).embedding for path in images])


NAMES = {"model_id": "scripted", "model_type": "vit", "fingerprint": "5c", "precision": "float32"}
SIZES = {"heads": 2, "hidden_size": 4, "embedding_size": 4, "grid_height": 2, "grid_width": 2, "image_size": 32}
LIMITS = pb.Limits(image_bytes=2**25, image_pixels=10**8, message_bytes=2**26)
UNIT = np.full(4, 0.5, np.float32)


class Scripted(pb_grpc.FocusEncoderServicer):
    """A gRPC server that follows a script: what a real one cannot be made to do on demand."""

    def __init__(self, *statuses: tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]) -> None:
        self.statuses = list(statuses)
        self.arrivals: list[float] = []

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        self.arrivals.append(time.monotonic())
        if self.statuses:
            code, trailing = self.statuses.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, "scripted")
        return pb.ModelInfo(**NAMES, **SIZES, default_heads=1, limits=LIMITS)

    def EncodeStream(
        self, requests: Iterator[pb.EncodeStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.EncodeStreamResponse]:
        """Answers in pairs, the wrong way round, and each item twice."""
        if self.statuses:
            next(iter(requests))
            context.abort(self.statuses.pop(0)[0], "scripted")
        pair = []
        for item in requests:
            response = pb.EncodeResponse(embedding=wire.tensor_to_pb(UNIT), width=int(item.id) + 1, height=1)
            answer = pb.EncodeStreamResponse(id=item.id, response=response)
            pair.append(answer)
            if len(pair) == 2:
                yield from (*reversed(pair), *pair)
                pair.clear()
        yield from pair


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Scripted, str]]]:
    servers = []

    def start(*statuses: tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]) -> tuple[Scripted, str]:
        service = Scripted(*statuses)
        server = grpc.server(futures.ThreadPoolExecutor(4))
        pb_grpc.add_FocusEncoderServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return service, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


# --- single calls -----------------------------------------------------------------------------------------------------


def test_encode_from_any_source_gives_the_same(encoder: Encoder, images: list[Path], embeddings: np.ndarray) -> None:
    picture = Image.open(images[0])
    for source in (str(images[0]), images[0].read_bytes(), picture, np.asarray(picture)):
        encoding = encoder.encode(source)
        np.testing.assert_allclose(encoding.embedding, embeddings[0], atol=1e-5)
        assert (encoding.width, encoding.height, encoding.state, encoding.timings) == (160, 120, None, None)


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
        started = time.monotonic()
        with pytest.raises((EncoderUnavailable, DeadlineExceeded), match=address):
            encoder.encode(images[0])
        with pytest.raises(EncoderError, match=address):
            list(encoder.encode_many(images, timeout=1))
        assert time.monotonic() - started < 8


def test_deadline(encoder: Encoder, images: list[Path]) -> None:
    with pytest.raises(DeadlineExceeded, match="did not answer in time"):
        encoder.encode(images[0], timeout=0.0005)


BUSY, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


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
    assert 0.65 < service.arrivals[1] - service.arrivals[0] < 2


def test_several_addresses_are_used_in_turn_and_a_dead_one_is_skipped(
    scripted: Callable[..., tuple[Scripted, str]],
) -> None:
    (first, one), (second, two) = scripted(), scripted()
    with Encoder([one, f"127.0.0.1:{free_port()}", two]) as encoder:
        for _ in range(20):
            encoder._call(encoder._stub.GetModelInfo, pb.GetModelInfoRequest(), None)
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


# --- bulk -------------------------------------------------------------------------------------------------------------


def test_bulk_keeps_order_around_bad_images(encoder: Encoder, images: list[Path], embeddings: np.ndarray) -> None:
    data = images[1].read_bytes()
    mixed = [images[0], "nowhere.jpg", images[1], data[:900], b"", images[2]]
    with pytest.raises(InvalidInput, match="at least 1"):
        next(encoder.encode_many(mixed, in_flight=0))
    results = list(encoder.encode_many(mixed, in_flight=2))
    kinds = [type(result) for result in results]
    assert kinds == [Encoding, ImageError, Encoding, ImageError, ImageError, Encoding]
    good = [result.embedding for result in results if isinstance(result, Encoding)]
    np.testing.assert_allclose(good, embeddings[:3], atol=1e-5)


@pytest.mark.parametrize("flags", [{"max_message_bytes": 65536}, {"max_image_bytes": 50_000}])
def test_bulk_survives_an_item_over_a_lower_limit_of_the_server(
    tiny_model: Path, images: list[Path], flags: dict[str, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)  # over 100 kB, however packed

    async def asynchronously(address: str) -> list[Encoding | PhsError]:
        async with AsyncEncoder(address) as encoder:
            await encoder.fetch_info()
            return await listed(encoder.encode_many([images[0], noise, images[1]]))

    settings = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=2, **flags)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        assert encoder.info.limits != Limits()
        for results in (
            list(encoder.encode_many([images[0], noise, images[1]])),
            asyncio.run(asynchronously(server.address)),
        ):
            assert [type(result) for result in results] == [Encoding, ImageError, Encoding]


def test_bulk_reads_only_so_far_ahead(encoder: Encoder, images: list[Path]) -> None:
    taken = 0

    def source() -> Iterator[Path]:
        nonlocal taken
        for path in images * 20:
            taken += 1
            yield path

    results = encoder.encode_many(source(), in_flight=8)
    for _ in range(5):
        next(results)
    assert taken <= 13
    results.close()


def test_bulk_of_nothing_and_of_unmatched_prompts(encoder: Encoder, images: list[Path]) -> None:
    assert list(encoder.encode_many([])) == []
    with pytest.raises(InvalidInput, match="as many as there are images"):
        list(encoder.encode_many(images[:3], [None, None]))
    with pytest.raises(InvalidInput, match="as many as there are images"):
        list(encoder.encode_many(images[:2], [None, None, None]))


def test_bulk_survives_answers_out_of_order_and_twice(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    _, address = scripted()
    with Encoder(address) as encoder:
        widths = [result.width for result in encoder.encode_many(images[:20], in_flight=4)]
    assert widths == list(range(1, 21))


def test_bulk_resends_when_the_server_is_full_or_gone_but_not_for_other_reasons(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    _, address = scripted((BUSY, ()), (GONE, ()), (grpc.StatusCode.CANCELLED, ()))
    with Encoder(address) as encoder:
        assert [result.width for result in encoder.encode_many(images[:6])] == [1, 2, 3, 4, 5, 6]
    _, address = scripted((grpc.StatusCode.UNAUTHENTICATED, ()))
    with Encoder(address) as encoder, pytest.raises(EncoderError, match="scripted"):
        list(encoder.encode_many(images[:6]))


def test_bulk_gives_up_when_nothing_is_answered_and_not_while_the_caller_is_slow(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    """The scripted server answers in pairs: a lone item waits for a second one."""
    _, address = scripted()
    with Encoder(address) as encoder:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="none of the items in flight for 0.5 s"):
            list(encoder.encode_many(lingering(images[:1]), timeout=0.5, in_flight=1))
        assert time.monotonic() - started < 5
        slow = []
        for result in encoder.encode_many(images[:6], timeout=0.5, in_flight=2):
            time.sleep(0.6)
            slow.append(result.width)
        assert slow == [1, 2, 3, 4, 5, 6]


def lingering(images: list[Path]) -> Iterator[Path]:
    yield from images
    while True:
        yield images[0]


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_bulk_survives_a_restart_in_the_middle(
    tiny_model: Path, images: list[Path], embeddings: np.ndarray, how: str
) -> None:
    """kill -9 or SIGTERM after 100 of 600 items, the server back on the same port: each item once, in order, right."""
    with ServerProcess(tiny_model, precision="float32") as server, Encoder(server.address, timeout=90) as encoder:

        def strike() -> None:
            getattr(server, how)()
            server.restart()

        striker = threading.Thread(target=strike)
        results = []
        for result in encoder.encode_many(images * 25, in_flight=32):
            results.append(result)
            if len(results) == 100:
                striker.start()
        striker.join()
        assert len(results) == 600 and all(isinstance(result, Encoding) for result in results)
        np.testing.assert_allclose([result.embedding for result in results], np.tile(embeddings, (25, 1)), atol=1e-5)
        server.wait_until_ready()


# --- asyncio ----------------------------------------------------------------------------------------------------------


def test_async_encoder_gives_what_encoder_gives(address: str, images: list[Path], embeddings: np.ndarray) -> None:
    async def use() -> None:
        async with AsyncEncoder(address) as encoder:
            assert (await encoder.fetch_info()).heads == HEADS
            together = await asyncio.gather(*(encoder.encode(path) for path in images))
            np.testing.assert_allclose([encoding.embedding for encoding in together], embeddings, atol=1e-5)
            explanation = await encoder.explain(images[0], Box(0, 0, 80, 60))
            assert explanation.attention.shape == (HEADS, 4, 4)
            query = await encoder.encode(images[0], outputs=Outputs(state=True, head_weights=True))
            scores = await encoder.rerank(query.embedding[None], query.head_weights[None], query.state[None])
            np.testing.assert_allclose(scores, [[1]], atol=1e-4)
            with pytest.raises(ImageError, match="not found"):
                await encoder.encode("nowhere.jpg")
            with pytest.raises(DeadlineExceeded):
                await encoder.encode(images[0], timeout=0.0005)
            mixed = encoder.encode_many([images[0], b"", images[1]], in_flight=2)
            results = await listed(mixed)
            assert [type(result) for result in results] == [Encoding, ImageError, Encoding]
            np.testing.assert_allclose(results[2].embedding, embeddings[1], atol=1e-5)
            with pytest.raises(InvalidInput, match="as many as there are images"):
                await listed(encoder.encode_many(images[:3], [None]))

    asyncio.run(use())


async def listed(results: AsyncIterator[Encoding | PhsError]) -> list[Encoding | PhsError]:
    return [result async for result in results]


def test_async_bulk_survives_full_gone_and_twice_and_gives_up(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    async def use() -> None:
        _, address = scripted((BUSY, ()), (GONE, ()), (grpc.StatusCode.CANCELLED, ()))
        async with AsyncEncoder(address) as encoder:
            results = await listed(encoder.encode_many(images[:6], in_flight=4))
            assert [result.width for result in results] == [1, 2, 3, 4, 5, 6]
            with pytest.raises(DeadlineExceeded, match="none of the items in flight"):
                await listed(encoder.encode_many(lingering(images[:1]), timeout=0.5, in_flight=1))

    asyncio.run(use())


def test_async_bulk_survives_kill_9(tiny_model: Path, images: list[Path], embeddings: np.ndarray) -> None:
    async def use(server: ServerProcess) -> None:
        async with AsyncEncoder(server.address, timeout=90) as encoder:
            results = []
            async for result in encoder.encode_many(images * 10, in_flight=16):
                results.append(result)
                if len(results) == 60:
                    server.kill()
                    server.restart()
            found = [result.embedding for result in results]
            np.testing.assert_allclose(found, np.tile(embeddings, (10, 1)), atol=1e-5)

    with ServerProcess(tiny_model, precision="float32") as server:
        asyncio.run(use(server))


# --- reranking --------------------------------------------------------------------------------------------------------


def test_reranker_scores_by_the_definition(encoder: Encoder, tiny_model: Path, images: list[Path]) -> None:
    """Cosine of the query and each state read out, in plain torch, with the query's head weights."""
    reranker = Reranker(encoder)
    query = reranker.query(images[0], Box(0, 0, 80, 60), focus=Focus(heads_on=2))
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
        monkeypatch.setattr(requests, "_READOUTS", readouts)
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
