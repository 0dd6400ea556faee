"""Reranking inside Milvus: on Lite for real, and what servers are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, Function, MilvusClient, MilvusException

from phs_milvus import Encoder, FocusedCollection, FocusedSearch, Outputs
from phs_milvus.contract.errors import CollectionError, InvalidInput
from phs_milvus.contract.types import Focus
from phs_milvus.milvus import ranker as rankers
from phs_milvus.milvus.connection import is_lite
from phs_milvus.milvus.side import NewState
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.packed_query import unpack_query
from phs_milvus.search.queries import Examples, Query
from phs_milvus.web.access import Access
from phs_milvus.web.app import make_app
from phs_milvus.web.rerank import RerankEndpoint
from phs_milvus.web.serving import WebServer
from phs_milvus.web.settings import WebSettings

_BOX = Box(0, 0, 80, 60)


@pytest.fixture(scope="module")
def endpoint(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Asks for the token "secret"."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text("secret\n")
    settings = WebSettings(port=0, token_file=str(tokens))
    with WebServer(make_app(RerankEndpoint(encoder).routes, Access(settings), settings), settings) as server:
        yield server.url


@pytest.fixture(scope="module")
def lite(photo_search: FocusedSearch) -> MilvusClient:
    client = photo_search._collection.client
    if not is_lite(client):
        pytest.skip("about Milvus Lite")
    return client


@pytest.mark.parametrize("score", ["query_db", "blend"])
@pytest.mark.parametrize("examples", [False, True])
def test_milvus_itself_ranks_as_focused_search_does(
    photo_search: FocusedSearch, lite: MilvusClient, photos: list[Path], endpoint: str, score: str, examples: bool
) -> None:
    """41 candidates, of which Milvus returns the best 10, in our order and with our scores."""
    question = Query(photos[3], _BOX)
    if examples:
        question = Examples([question, Query(photos[7], _BOX)], [Query(photos[9])])
    focus = Focus(2, zoom=(0, 2))
    ours = photo_search.search_many([question], candidates=41, score=score, focus=focus)[0]
    ranker = photo_search.ranker(
        question, provider="cohere", endpoint=endpoint, token="secret", score=score, focus=focus
    )
    (hits,) = lite.hybrid_search("photos", [ranker.request(41)], ranker, limit=10, output_fields=["path"])
    copies = {"copy.jpg": photos[0].name}  # of one score, so of any order
    assert [copies.get(hit["id"], hit["id"]) for hit in hits] == [copies.get(hit.id, hit.id) for hit in ours]
    np.testing.assert_allclose([hit["distance"] for hit in hits], [hit.score for hit in ours], atol=1e-4)
    assert hits[0]["entity"]["path"]


def test_a_plain_search_reranks_what_it_found_and_several_at_once(
    photo_search: FocusedSearch, lite: MilvusClient, photos: list[Path], endpoint: str
) -> None:
    questions = [Query(photos[3], _BOX), Query(photos[4], _BOX)]
    ranker = photo_search.ranker(*questions, provider="cohere", endpoint=endpoint, token="secret")
    both = lite.search("photos", list(ranker.vectors), anns_field="embedding", limit=41, ranker=ranker)
    for hits, ours in zip(both, photo_search.search_many(questions, limit=41), strict=True):
        np.testing.assert_allclose([hit["distance"] for hit in hits], [hit.score for hit in ours], atol=1e-4)
    filtered = photo_search.ranker(questions[0], provider="cohere", endpoint=endpoint, token="secret")
    (hits,) = lite.hybrid_search("photos", [filtered.request(41, filter="id == 'copy.jpg'")], filtered, limit=10)
    assert [hit["id"] for hit in hits] == ["copy.jpg"]


def test_a_wrong_token_fails_the_search_with_the_reason(
    photo_search: FocusedSearch, lite: MilvusClient, photos: list[Path], endpoint: str
) -> None:
    ranker = photo_search.ranker(Query(photos[3], _BOX), provider="cohere", endpoint=endpoint)
    with pytest.raises(MilvusException, match="401"):
        lite.hybrid_search("photos", [ranker.request(10)], ranker, limit=10)


def test_lite_has_one_provider(photo_search: FocusedSearch, lite: MilvusClient, photos: list[Path]) -> None:
    for field, arguments in (
        ("provider", {"provider": "tei", "endpoint": "http://127.0.0.1:1"}),
        ("provider", {"provider": "voyageai", "endpoint": "http://127.0.0.1:1"}),
        ("endpoint", {"provider": "cohere"}),
        ("endpoint", {"provider": "cohere", "endpoint": "127.0.0.1:8766"}),
        ("credential", {"provider": "cohere", "endpoint": "http://127.0.0.1:1", "credential": "phs"}),
        ("score", {"provider": "cohere", "endpoint": "http://127.0.0.1:1", "score": "ann"}),
    ):
        with pytest.raises(InvalidInput) as caught:
            photo_search.ranker(Query(photos[3], _BOX), **arguments)
        assert caught.value.field == field
    with pytest.raises(InvalidInput):
        photo_search.ranker(provider="cohere", endpoint="http://127.0.0.1:1")
    ranker = photo_search.ranker(Query(photos[3], _BOX), provider="cohere", endpoint="http://127.0.0.1:1")
    with pytest.raises(InvalidInput):
        ranker.request(0)


def test_a_field_that_may_be_null_is_refused(lite: MilvusClient, encoder: Encoder, photos: list[Path]) -> None:
    schema = lite.create_schema(auto_id=False)
    schema.add_field("pk", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=encoder.info.embedding_size)
    schema.add_field("packed", DataType.VARCHAR, max_length=1000, nullable=True)
    index = lite.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="COSINE")
    lite.create_collection("nullable", schema=schema, index_params=index)
    fields = {"embedding_field": "vector", "state_field": "packed"}
    search = FocusedSearch(FocusedCollection.attach(lite, "nullable", model=encoder.info, **fields), encoder)
    with pytest.raises(CollectionError, match="may have null in field 'packed'"):
        search.ranker(Query(photos[3], _BOX), provider="cohere", endpoint="http://127.0.0.1:1")


def test_states_beside_the_collection_are_refused(lite: MilvusClient, encoder: Encoder, photos: list[Path]) -> None:
    lite.create_collection("foreign", dimension=encoder.info.embedding_size)
    encoding = encoder.encode(photos[3], outputs=Outputs(state=True))
    lite.insert("foreign", [{"id": 1, "vector": encoding.embedding}])
    collection = FocusedCollection.attach(lite, "foreign", model=encoder.info)
    collection.side.write([NewState(1, encoding.state, encoding.embedding, "")])
    search = FocusedSearch(collection, encoder)
    with pytest.raises(CollectionError, match="holds no states in its own rows"):
        search.ranker(Query(photos[3], _BOX), provider="cohere", endpoint="http://127.0.0.1:1")


def test_a_real_server_of_before_2_6_is_named(photo_search: FocusedSearch, photos: list[Path]) -> None:
    if is_lite(photo_search._collection.client):
        pytest.skip("about a Milvus server: tests/milvus_standalone.sh")
    with pytest.raises(CollectionError, match="ignores rerankers"):
        photo_search.ranker(Query(photos[3], _BOX), endpoint="http://127.0.0.1:8766")


@pytest.mark.parametrize(
    ("version", "works"),
    [("v2.3.5", False), ("2.5.10", False), ("v2.2-testing", False), ("v2.6.0", True), ("2.10.1", True), ("v3.0", True)],
)
def test_servers_before_2_6_ignore_rankers(version: str, works: bool) -> None:
    if works:
        rankers._check_version(version)
    else:
        with pytest.raises(CollectionError, match=rf"Milvus {version} ignores rerankers"):
            rankers._check_version(version)


def test_what_a_server_is_sent_is_what_its_sources_read() -> None:
    """internal/util/function/rerank: tei_rerank_provider.go, vllm_rerank_provider.go and cohere_rerank_provider.go read
    these parameters; the endpoint's path is replaced by /rerank, and keys are names in milvus.yaml."""
    for provider in ("tei", "vllm"):
        sent = rankers._for_server(provider, "http://rerank:8766", None, "phs")
        assert sent == {"endpoint": "http://rerank:8766", "credential": "phs"}
    assert rankers._for_server("cohere", None, None, None) == {"model_name": "phs"}
    for field, arguments in (
        ("token", ("tei", "http://rerank:8766", "secret", None)),
        ("endpoint", ("tei", None, None, None)),
        ("endpoint", ("vllm", "http://rerank:8766/v2", None, None)),
        ("endpoint", ("cohere", "http://rerank:8766", None, None)),
    ):
        with pytest.raises(InvalidInput) as caught:
            rankers._for_server(*arguments)
        assert caught.value.field == field


def test_the_function_is_one_of_pymilvus(photo_search: FocusedSearch, lite: MilvusClient, photos: list[Path]) -> None:
    ranker = photo_search.ranker(Query(photos[3], _BOX), provider="cohere", endpoint="http://127.0.0.1:1")
    assert isinstance(ranker, Function) and ranker.input_field_names == ["phs_state"]
    assert ranker.params["max_client_batch_size"] >= 16_384 and ranker.params["reranker"] == "model"
    (text,) = ranker.params["queries"]
    assert json.loads(text)["phs"] == 1
    comparison = unpack_query(text, photo_search._encoder.info)
    assert len(comparison.shares) == 2 and comparison.shares.sum() == pytest.approx(1)
