"""POST /rerank in the words of three services, as Milvus writes them, and whatever else may come.

What Milvus 2.6 sends and reads was taken from its sources, internal/util/function/models: tei/tei.go,
vllm/vllm_client.go and cohere/cohere_client.go (bodies, /rerank whatever the endpoint's path, "Bearer" and "bearer"),
and common.go (30 seconds, three tries, everything but 200 an error).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import state
from phs_milvus.contract.types import MOST_READOUTS, Focus
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.packed_query import pack_query
from phs_milvus.search.parts import Comparison, Parts, parts_of
from phs_milvus.search.rerank import Reranker
from phs_milvus.web.access import Access
from phs_milvus.web.app import make_app
from phs_milvus.web.rerank import RerankEndpoint
from phs_milvus.web.serving import WebServer
from phs_milvus.web.settings import WebSettings
from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.client.support import HEADS, HIDDEN
from tests.servers import free_port
from tests.web.support import Answer, request


@pytest.fixture(scope="module")
def states(make_images: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Any:
    """float16 [24, 2, D]; the first is that of the query's own picture."""
    images = make_images(tmp_path_factory.mktemp("images"), 24)
    return np.stack([encoding.state for encoding in encoder.encode_many(images, outputs=Outputs(state=True))])


@pytest.fixture(scope="module")
def texts(states: Any) -> list[str]:
    return [state.pack(one) for one in states]


@pytest.fixture(scope="module")
def parts(make_images: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Parts:
    """A query at two zooms, and a counter-example."""
    images = make_images(tmp_path_factory.mktemp("queries"), 2)
    reranker = Reranker(encoder)
    query = reranker.query(images[0], Box(0, 0, 80, 60), focus=Focus(2, zoom=(0, 2)))
    return parts_of([query], [reranker.query(images[1])])


@pytest.fixture(scope="module")
def query(parts: Parts, encoder: Encoder) -> str:
    return pack_query(parts.comparison("query_db"), encoder.info.fingerprint)


def post(port: int, body: Any, path: str = "/rerank", **headers: str) -> Answer:
    return request(port, path, json.dumps(body), content_type="application/json", **headers)


def test_tei(rerank_port: int, query: str, texts: list[str], parts: Parts, states: Any, encoder: Encoder) -> None:
    """Every text is answered for: Milvus counts the answers."""
    answer = post(rerank_port, {"query": query, "texts": texts, "truncate": True, "truncation_direction": "Right"})
    expected = parts.query_db_scores(encoder, states)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    assert [each["index"] for each in answer.json] == np.argsort(-expected, kind="stable").tolist()
    for each in answer.json:
        assert set(each) == {"index", "score"} and each["score"] == pytest.approx(expected[each["index"]], abs=1e-6)


def test_vllm_and_cohere(
    rerank_port: int, query: str, texts: list[str], parts: Parts, states: Any, encoder: Encoder
) -> None:
    expected = parts.query_db_scores(encoder, states)
    vllm = post(rerank_port, {"query": query, "documents": texts, "truncate_prompt_tokens": 3}).json
    cohere = {"model": "phs", "query": query, "documents": texts}
    for answer in (vllm, post(rerank_port, cohere, "/v2/rerank", authorization="bearer none").json):
        found = {each["index"]: each["relevance_score"] for each in answer["results"]}
        np.testing.assert_allclose([found[index] for index in range(24)], expected, atol=1e-6)
    best = post(rerank_port, {**cohere, "top_n": 3}, "/any/prefix/rerank").json["results"]
    assert best == vllm["results"][:3]


def test_blend_is_computed_from_the_state_alone(
    rerank_port: int, texts: list[str], parts: Parts, states: Any, encoder: Encoder
) -> None:
    packed = pack_query(parts.comparison("blend"), encoder.info.fingerprint)
    answer = post(rerank_port, {"query": packed, "texts": texts}).json
    rows = encoder.readout(states, np.ones(HEADS, np.float32))
    expected = (rows @ parts.ann_embedding + parts.query_db_scores(encoder, states)) / 2
    found = {each["index"]: each["score"] for each in answer}
    np.testing.assert_allclose([found[index] for index in range(24)], expected, atol=1e-5)


def test_what_is_no_state_of_this_model_scores_least(rerank_port: int, query: str, texts: list[str]) -> None:
    nan = state.pack(np.zeros((2, HIDDEN)))[:-4] + "//8="
    bad = ["", None, 5, {}, "*" * len(texts[0]), texts[0][:-4], state.pack(np.zeros((2, HIDDEN + 1))), "é" * 256, nan]
    answer = post(rerank_port, {"query": query, "texts": [*bad, *texts[:3]]})
    found = {each["index"]: each["score"] for each in answer.json}
    good = {each["index"]: each["score"] for each in post(rerank_port, {"query": query, "texts": texts[:3]}).json}
    assert [found[index] for index in range(len(bad))] == [-1] * len(bad)
    assert [found[len(bad) + index] for index in range(3)] == pytest.approx([good[index] for index in range(3)])
    only = post(rerank_port, {"query": query, "texts": ["", ""]}).json
    assert only == [{"index": 0, "score": -1}, {"index": 1, "score": -1}]
    assert post(rerank_port, {"query": query, "texts": []}).json == []


def test_both_formats_of_states_are_read(
    rerank_port: int, query: str, texts: list[str], parts: Parts, states: Any, encoder: Encoder
) -> None:
    small = [state.pack(one, "int8") for one in states]
    expected = parts.query_db_scores(encoder, state.unpack_stored(small, HIDDEN))
    for sent in (small, [*small[:12], *texts[12:]], ["", *small[1:]]):
        found = {each["index"]: each["score"] for each in post(rerank_port, {"query": query, "texts": sent}).json}
        np.testing.assert_allclose([found[index] for index in range(1, 12)], expected[1:12], atol=2e-3)
    assert found[0] == -1


def test_states_at_the_ends_of_float16_are_scored(rerank_port: int, query: str) -> None:
    ends = [np.zeros((2, HIDDEN)), np.full((2, HIDDEN), 65504), np.tile([65504, -65504], (2, HIDDEN // 2))]
    answer = post(rerank_port, {"query": query, "texts": [state.pack(end) for end in ends]})
    assert answer.status == 200 and all(-1 <= each["score"] <= 1 for each in answer.json)


def test_a_query_of_another_model_is_a_conflict(rerank_port: int, parts: Parts, texts: list[str]) -> None:
    other = pack_query(parts.comparison("query_db"), "0" * 64)
    answer = post(rerank_port, {"query": other, "texts": texts})
    assert answer.status == 409 and "encoded by a model of fingerprint 000000000" in answer.json["detail"]


@pytest.mark.parametrize("change", ["nan", "short", "shape", "base64", "format", "parts", "huge", "zero", "no shares"])
def test_a_query_that_cannot_be_used_names_itself(
    rerank_port: int, parts: Parts, texts: list[str], encoder: Encoder, change: str
) -> None:
    comparison = parts.comparison("query_db")
    changes = {
        "nan": replace(comparison, embeddings=comparison.embeddings * np.nan),
        "short": replace(comparison, embeddings=comparison.embeddings[:, :-1]),
        "shape": replace(comparison, shares=comparison.shares[:-1]),
        "parts": Comparison(
            *(np.tile(each.T, 200).T for each in (comparison.embeddings, comparison.head_weights)),
            np.tile(comparison.shares, 200),
        ),
        "huge": replace(comparison, head_weights=comparison.head_weights * 1e30),
        "zero": replace(comparison, embeddings=comparison.embeddings * 0),
        "no shares": replace(comparison, shares=comparison.shares[:0]),
    }
    packed = pack_query(changes.get(change, comparison), encoder.info.fingerprint)
    packed = {"base64": packed.replace('"shares":"', '"shares":"*'), "format": packed.replace(":1,", ":2,")}.get(
        change, packed
    )
    answer = post(rerank_port, {"query": packed, "texts": texts[:2]})
    assert answer.status == 400 and answer.json["field"] in ("query", "embeddings", "head_weights"), answer


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\xff\xfe{", "body"),
        (b"[" * 200_000, "body"),
        (b'{"texts":' * 90, "body"),
        (b'{"a":' * 200_000, "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'{"query": "q"}', "body"),
        (b'{"query": "q", "texts": [], "documents": []}', "body"),
        (b'{"query": "q", "texts": "abc"}', "texts"),
        (b'{"query": "q", "documents": {"0": "abc"}}', "documents"),
        (b'{"query": NaN, "texts": []}', "body"),
        (b'{"query": 1e999, "texts": []}', "body"),
        (b'{"query": null, "texts": []}', "query"),
        (b'{"texts": []}', "query"),
        (b'{"query": "[]", "texts": []}', "query"),
        (b'{"query": "' + b"[" * 90 + b'", "texts": []}', "query"),
        (b'{"query": "{\\"phs\\": true}", "texts": []}', "query"),
        (b'{"query": "q", "documents": [], "top_n": 0}', "top_n"),
        (b'{"query": "q", "documents": [], "top_n": true}', "top_n"),
        (b'{"query": "q", "documents": [], "top_n": "3"}', "top_n"),
        (b'{"query": "q", "texts": [' + b"[]," * 5_000_000 + b"[]]}", "body"),
        (b'{"query": "q", "texts": [' + b'"",' * 5_000_000 + b'""]}', "body"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[:24]!r}",
)
def test_a_hostile_body_is_a_problem_and_nothing_more(rerank_port: int, body: bytes, field: str) -> None:
    answer = request(rerank_port, "/rerank", body)
    assert answer.status == 400 and answer.json["field"] == field
    assert len(answer.body) < 1000


def test_many_texts(rerank_port: int, query: str, parts: Parts, texts: list[str], encoder: Encoder) -> None:
    """As many as one Rerank may ask for; beyond, the problem says so."""
    whole = replace(parts.comparison("query_db"), head_weights=np.ones((3, HEADS), np.float32))
    once = pack_query(whole, encoder.info.fingerprint)
    assert len(post(rerank_port, {"query": once, "texts": ["x"] * MOST_READOUTS}).json) == MOST_READOUTS
    mixed = [*texts, *["no state"] * 16_000]
    assert [each["score"] for each in post(rerank_port, {"query": query, "texts": mixed}).json[24:]] == [-1] * 16_000
    answer = post(rerank_port, {"query": query, "texts": ["x"] * MOST_READOUTS})
    assert answer.status == 400 and answer.json["field"] == "texts" and "200,000" in answer.json["detail"]
    huge = request(rerank_port, "/rerank", b"x" * (64 * 2**20 + 1))
    assert huge.status == 413 and huge.json["field"] == "body"


def test_an_encoder_that_stopped_is_waited_for_by_whoever_asks(
    tiny_model: Path, parts: Parts, texts: list[str], encoder: Encoder
) -> None:
    """503 with Retry-After while it is away; when it is back, so are the scores."""
    packed = pack_query(parts.comparison("query_db"), encoder.info.fingerprint)
    body = {"query": packed, "texts": texts}
    settings = WebSettings(port=0)
    server = Settings(model=str(tiny_model), port=free_port(), precision="float32", drain_seconds=0)
    with ExitStack() as stack:
        with ServerThread(server) as first:
            own = stack.enter_context(Encoder(first.address))
            own.info  # noqa: B018  as the command does before it serves
            app = make_app(RerankEndpoint(own).routes, Access(settings), settings)
            web = stack.enter_context(WebServer(app, settings))
            before = post(web.port, body)
            assert before.status == 200
        started = time.monotonic()
        away = post(web.port, body)
        assert time.monotonic() - started < 10  # Milvus tries three times in 30 seconds
        assert away.status == 503 and away.headers["retry-after"] == "1" and own.address in away.json["detail"]
        with ServerThread(server):
            assert post(web.port, body).json == before.json
