"""Haystack's own pipelines, YAML and documents over a real server and a real Milvus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phs_milvus import (
    CollectionError,
    Encoder,
    EncoderUnavailable,
    Focus,
    FocusedCollection,
    FocusedSearch,
    InvalidInput,
    StateError,
    connect,
)
from phs_milvus.contract.errors import PhsError
from phs_milvus.milvus.connection import close
from tests.integrations.support import expected, needs, query, run_example

haystack = needs("haystack")
from haystack import Document, Pipeline  # noqa: E402
from haystack.dataclasses import ByteStream  # noqa: E402
from haystack.utils import Secret  # noqa: E402
from milvus_lite.db import MilvusLite  # noqa: E402
from milvus_lite.exceptions import DataDirLockedError  # noqa: E402

from phs_milvus.integrations import haystack as module  # noqa: E402
from phs_milvus.integrations.haystack import FocusedRanker, FocusedRetriever  # noqa: E402


@pytest.fixture
def retriever(search: FocusedSearch, milvus_uri: str, address: str) -> Iterator[FocusedRetriever]:
    retriever = FocusedRetriever("images", milvus=milvus_uri, encoder=address, top_k=7)
    yield retriever
    retriever.close()


@pytest.fixture
def ranker(address: str) -> Iterator[FocusedRanker]:
    ranker = FocusedRanker(encoder=address)
    yield ranker
    ranker.close()


@pytest.fixture(scope="module")
def documents(states: dict[str, str]) -> list[Document]:
    """The photos as a text search might have found them: in an order that has nothing to do with the query."""
    return [
        Document(id=Path(path).name, content="about it", meta={"phs_state": packed})
        for path, packed in sorted(states.items(), key=lambda item: item[1])
    ]


def asked(photos: list[Path]) -> dict[str, Any]:
    return {"image": str(photos[3]), "box": [20, 10, 90, 70]}


def test_the_example(search: FocusedSearch, milvus_uri: str, address: str, tmp_path: Path) -> None:
    places = {
        'milvus="./phs_milvus.db"': f'milvus="{milvus_uri}", encoder="{address}"',
        "FocusedRanker(top_k=3)": f'FocusedRanker("{address}", top_k=3)',
    }
    found = run_example(module, tmp_path, places)
    assert set(found["pipeline"].graph.nodes) == {"retriever", "ranker"}
    for name in ("retriever", "ranker"):
        found["pipeline"].get_component(name).close()


def test_documents_are_the_hits_of_a_search(
    search: FocusedSearch, photos: list[Path], retriever: FocusedRetriever
) -> None:
    ids, scores = expected(search, query(photos))
    for found in (retriever.run(asked(photos)), asyncio.run(retriever.run_async(query(photos)))):
        documents = found["documents"]
        assert [document.id for document in documents] == ids[:7]
        assert [document.score for document in documents] == pytest.approx([scores[name] for name in ids[:7]], abs=1e-5)
    best = documents[0].meta
    assert best["path"] == best["file_path"] == str(photos[3]) and best["blend_score"] == documents[0].score
    by_filter = retriever.run(query(photos), top_k=3, filter=f'id == "{photos[5].name}"')["documents"]
    assert [document.id for document in by_filter] == [photos[5].name]
    assert len(retriever.run(ByteStream(photos[3].read_bytes()), top_k=2)["documents"]) == 2


def test_documents_of_others_are_ranked_by_pointing(
    search: FocusedSearch, photos: list[Path], ranker: FocusedRanker, documents: list[Document]
) -> None:
    ids, scores = expected(search, query(photos))
    inside = {"image": ByteStream(photos[3].read_bytes()), "box": [20, 10, 90, 70]}
    for found in (ranker.run(documents, asked(photos)), asyncio.run(ranker.run_async(documents, inside))):
        assert [document.id for document in found["documents"]] == ids
        assert [one.score for one in found["documents"]] == pytest.approx([scores[name] for name in ids], abs=2e-4)
    assert found["documents"][0].content == "about it" and found["documents"][0].meta["query_db_score"] <= 1
    assert len(ranker.run(documents, asked(photos), top_k=2)["documents"]) == 2
    assert all(document.score is None and "query_db_score" not in document.meta for document in documents)


def test_blobs_and_paths_do_and_texts_say_that_they_do_not(
    photos: list[Path], ranker: FocusedRanker, documents: list[Document]
) -> None:
    text = Document(id="text", content="no picture")
    mixed = [
        text,
        Document(id="path", meta={"file_path": str(photos[6])}),
        Document(id="blob", blob=ByteStream(photos[3].read_bytes())),
    ]
    ranked = ranker.run(mixed, asked(photos))["documents"]
    assert [document.id for document in ranked] == ["blob", "path", "text"]
    assert ranked[2].score is None and "neither a state nor a picture" in ranked[2].meta["phs_error"]
    with pytest.raises(StateError, match="neither a state nor a picture"):
        ranker.run([text], asked(photos))


def test_a_pipeline_survives_its_yaml(
    search: FocusedSearch, milvus_uri: str, address: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHS_TEST_TOKEN", "")
    token = Secret.from_env_var("PHS_TEST_TOKEN", strict=False)
    pipeline = Pipeline()
    found = {"milvus": milvus_uri, "milvus_token": token, "encoder": address, "encoder_token": token}
    options = {"top_k": 8, "score": "query_db", "focus": Focus(2, zoom=(0, 1.25)), "search_kwargs": {"candidates": 24}}
    pipeline.add_component("retriever", FocusedRetriever("images", **found, **options))
    pipeline.add_component("ranker", FocusedRanker(address, top_k=3, focus={"heads_on": 1}, score="query_db"))
    pipeline.connect("retriever.documents", "ranker.documents")
    allowed = {"allowed_modules": ["phs_milvus.*"]} if haystack.__version__ >= "3" else {}
    again = Pipeline.loads(pipeline.dumps(), **allowed)
    assert again.dumps() == pipeline.dumps() and "PHS_TEST_TOKEN" in again.dumps()
    retriever = again.get_component("retriever")
    assert retriever.focus == Focus(2, zoom=(0, 1.25)) and retriever.search_kwargs == {"candidates": 24}
    inputs = {"retriever": {"query": asked(photos)}, "ranker": {"query": f"{photos[3]}:20,10,90,70"}}
    answers = [again.run(inputs), pipeline.run(inputs)]
    if haystack.__version__ >= "3":
        answers.append(asyncio.run(again.run_async(inputs)))
    ids = [[document.id for document in answer["ranker"]["documents"]] for answer in answers]
    assert ids == [ids[0]] * len(ids) and len(ids[0]) == 3 and ids[0][0] == photos[3].name
    for one in (retriever, pipeline.get_component("retriever"), again.get_component("ranker")):
        one.close()


def test_what_fails_says_so(
    search: FocusedSearch, milvus_uri: str, address: str, photos: list[Path], retriever: FocusedRetriever
) -> None:
    with pytest.raises(CollectionError, match="there is no collection 'nothing'"):
        FocusedRetriever("nothing", milvus=milvus_uri, encoder=address).warm_up()
    with pytest.raises(EncoderUnavailable):
        FocusedRetriever("images", milvus=milvus_uri, encoder="127.0.0.1:1").run(asked(photos))
    with pytest.raises(InvalidInput, match="has picture; a query has image"):
        retriever.run({"picture": "a.jpg"})
    with pytest.raises(InvalidInput, match="heads_on must be"):
        FocusedRanker(focus={"heads_on": 0})


def is_free(database: Path) -> bool:
    """Whether a Milvus Lite is open nowhere."""
    try:
        MilvusLite(str(database)).close()
    except DataDirLockedError:
        return False
    return True


def test_connections_are_opened_once_and_none_is_left(encoder: Encoder, address: str, tmp_path: Path) -> None:
    database = tmp_path / "own.db"
    client = connect(str(database))
    FocusedCollection.create(client, "images", encoder.info)
    assert not is_free(database)
    close(client)
    wrong = ({"collection": "nothing"}, {"tls": {"ca": str(tmp_path / "ca.pem")}}, {"encoder": "127.0.0.1:1"})
    for options in wrong:
        with pytest.raises(PhsError):
            FocusedRetriever(**{"encoder": address, "milvus": str(database), **options}).warm_up()
        assert is_free(database), options
    retriever = FocusedRetriever("images", milvus=str(database), encoder=address)

    async def at_once() -> None:
        await asyncio.gather(*(asyncio.to_thread(retriever.warm_up) for _ in range(4)))

    asyncio.run(at_once())
    assert not is_free(database)
    retriever.close()
    assert is_free(database)


def test_tls_files_are_named_in_yaml(tmp_path: Path) -> None:
    ranker = FocusedRanker(tls={"ca": str(tmp_path / "ca.pem")})
    assert ranker.to_dict()["init_parameters"]["tls"] == {"ca": str(tmp_path / "ca.pem")}
    with pytest.raises(InvalidInput, match="ca.pem"):
        ranker.warm_up()


def test_documents_of_milvus_haystack_are_ranked(
    search: FocusedSearch, photos: list[Path], ranker: FocusedRanker, documents: list[Document], tmp_path: Path
) -> None:
    """A store of milvus-haystack's own, with embeddings that have nothing to do with ours."""
    store_module = needs("milvus_haystack")
    store = store_module.MilvusDocumentStore(
        connection_args={"uri": str(tmp_path / "own.db")}, index_params={"index_type": "FLAT", "metric_type": "COSINE"}
    )
    copies = [Document(id=one.id, content=one.content, meta=one.meta, embedding=[0.6, 0.8]) for one in documents]
    store.write_documents(copies)
    found = store_module.MilvusEmbeddingRetriever(document_store=store, top_k=len(copies)).run([1.0, 0.0])["documents"]
    ranked = ranker.run(found, asked(photos))["documents"]
    assert [document.id for document in ranked] == expected(search, query(photos))[0]
