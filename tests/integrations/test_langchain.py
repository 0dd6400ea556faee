"""LangChain's own runnables, documents and vector store over a real server and a real Milvus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from phs_milvus import Encoder, FocusedSearch, InvalidInput, StateError
from phs_milvus.search.aio import AsyncFocusedSearch
from tests.integrations.support import BOX, expected, needs, query, run_example
from tests.servers import REPO

needs("langchain_core")
from langchain_core.callbacks import BaseCallbackHandler  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import DeterministicFakeEmbedding  # noqa: E402
from langchain_core.runnables import RunnableLambda  # noqa: E402

from phs_milvus.integrations import langchain  # noqa: E402
from phs_milvus.integrations.langchain import FocusedRerank, FocusedRetriever  # noqa: E402


@pytest.fixture(scope="module")
def documents(states: dict[str, str]) -> list[Document]:
    """The photos as a text search might have found them: in an order that has nothing to do with the query."""
    return [
        Document(page_content=f"about {Path(path).name}", id=Path(path).name, metadata={"phs_state": packed})
        for path, packed in sorted(states.items(), key=lambda item: item[1])
    ]


def test_the_example(milvus_uri: str, address: str, search: FocusedSearch, tmp_path: Path) -> None:
    places = {"127.0.0.1:50051": address, "./phs_milvus.db": milvus_uri}
    found = run_example(langchain, tmp_path, places)
    assert len(found["documents"]) == 5 and len(found["best"]) == 3
    assert {document.id for document in found["best"]} <= {document.id for document in found["documents"]}


def test_documents_are_the_hits_of_a_search(search: FocusedSearch, photos: list[Path]) -> None:
    asked = query(photos)
    ids, scores = expected(search, asked)
    documents = FocusedRetriever(search=search, k=7).invoke(asked)
    assert [document.id for document in documents] == ids[:7]
    assert [document.metadata["relevance_score"] for document in documents] == pytest.approx(
        [scores[name] for name in ids[:7]]
    )
    best = documents[0]
    assert best.page_content == best.metadata["path"] == str(photos[3])
    assert best.metadata["blend_score"] == best.metadata["relevance_score"] and best.metadata["digest"]
    assert not {"rank", "score", "ann_rank", "query_db_rank"} & set(best.metadata)  # a reranker would not know of them


def test_every_way_to_ask_gives_the_same_documents(search: FocusedSearch, photos: list[Path]) -> None:
    retriever = FocusedRetriever(search=search, k=5)
    as_dict = {"image": str(photos[3]), "box": [BOX.x0, BOX.y0, BOX.x1, BOX.y1]}
    as_text = f"{photos[3]}:20,10,90,70"
    answers = [
        retriever.invoke(query(photos)),
        retriever.invoke(as_dict),
        asyncio.run(retriever.ainvoke(as_dict)),
        *retriever.batch([as_dict, as_text]),
        (RunnableLambda(lambda text: text.strip()) | retriever).invoke(f" {as_text} "),
    ]
    ids = expected(search, query(photos))[0][:5]
    assert [[document.id for document in answer] for answer in answers] == [ids] * len(answers)


def test_arguments_of_one_call_and_of_every_call(search: FocusedSearch, photos: list[Path]) -> None:
    own = f'id == "{photos[5].name}"'
    retriever = FocusedRetriever(search=search, search_kwargs={"score": "query_db", "filter": own})
    (only,) = retriever.invoke(query(photos))
    assert only.id == photos[5].name and only.metadata["relevance_score"] == only.metadata["query_db_score"]
    assert len(retriever.invoke(query(photos), filter="", k=4)) == 4
    assert len(asyncio.run(retriever.ainvoke(query(photos), filter="", k=4))) == 4


def test_an_async_search_bounds_what_is_in_flight(search: FocusedSearch, photos: list[Path]) -> None:
    async def run() -> tuple[list[list[Document]], list[Document]]:
        async with AsyncFocusedSearch(search, in_flight=2) as bounded:
            retriever = FocusedRetriever(search=bounded, k=5)
            return await retriever.abatch([query(photos)] * 5), retriever.invoke(query(photos))

    answers, blocking = asyncio.run(run())
    ids = expected(search, query(photos))[0][:5]
    assert [[document.id for document in answer] for answer in [*answers, blocking]] == [ids] * 6


def test_errors_reach_the_caller_and_the_callbacks(search: FocusedSearch, photos: list[Path]) -> None:
    heard: list[BaseException] = []

    class Heard(BaseCallbackHandler):
        def on_retriever_error(self, error: BaseException, **_: object) -> None:
            heard.append(error)

    retriever = FocusedRetriever(search=search)
    with pytest.raises(InvalidInput, match="has picture; a query has image"):
        retriever.invoke({"picture": "a.jpg"}, config={"callbacks": [Heard()]})
    assert len(heard) == 1
    with pytest.raises(InvalidInput, match="nowhere.jpg"):
        asyncio.run(retriever.ainvoke("nowhere.jpg"))


def test_documents_of_others_are_reranked_by_pointing(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], documents: list[Document]
) -> None:
    ids, scores = expected(search, query(photos))
    reranker = FocusedRerank(encoder=encoder)
    for best in (
        reranker.compress_documents(documents, query(photos)),
        asyncio.run(reranker.acompress_documents(documents, f"{photos[3]}:20,10,90,70")),
    ):
        assert [document.id for document in best] == ids
        for document in best:
            assert document.metadata["relevance_score"] == pytest.approx(scores[document.id], abs=2e-4)
            assert document.page_content == f"about {document.id}"
    assert len(FocusedRerank(encoder=encoder, top_n=2).compress_documents(documents, query(photos))) == 2
    assert "relevance_score" not in documents[0].metadata
    assert reranker.compress_documents([], query(photos)) == []


def test_documents_without_a_state_are_told_apart(
    encoder: Encoder, photos: list[Path], documents: list[Document]
) -> None:
    reranker = FocusedRerank(encoder=encoder)
    text = Document("no picture", metadata={"page": 3})
    picture = Document("a picture", metadata={"source": str(photos[3])})
    best = reranker.compress_documents([text, picture, *documents[:2]], query(photos))
    assert best[0].page_content == "a picture"
    assert best[-1].page_content == "no picture" and "neither a state nor a picture" in best[-1].metadata["phs_error"]
    with pytest.raises(StateError, match="neither a state nor a picture"):
        reranker.compress_documents([text], query(photos))


def test_documents_of_langchain_milvus_are_reranked(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], states: dict[str, str], tmp_path: Path
) -> None:
    """A collection that langchain-milvus made, of texts and embeddings of its own, with states as metadata."""
    store = needs("langchain_milvus").Milvus(
        DeterministicFakeEmbedding(size=8),
        connection_args={"uri": str(tmp_path / "own.db")},
        index_params={"index_type": "FLAT", "metric_type": "COSINE"},
        auto_id=True,
    )
    store.add_texts(
        [f"about {Path(path).name}" for path in states],
        [{"phs_state": packed, "file": Path(path).name} for path, packed in states.items()],
    )
    found = store.as_retriever(search_kwargs={"k": len(states)}).invoke("a bicycle in front of a shop")
    best = FocusedRerank(encoder=encoder).compress_documents(found, query(photos))
    assert [document.metadata["file"] for document in best] == expected(search, query(photos))[0]
    assert [document.metadata["file"] for document in found] != [document.metadata["file"] for document in best]


def test_the_example_of_langchain_milvus(
    search: FocusedSearch, address: str, photos: list[Path], tmp_path: Path
) -> None:
    needs("langchain_milvus")
    script, asked = REPO / "examples/rerank_langchain_milvus.py", f"{photos[3]}:20,10,90,70"
    command = [sys.executable, script, address, photos[0].parent, asked, "a bicycle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [Path(line.split()[1]).name for line in done.stdout.splitlines()] == expected(search, query(photos))[0][:5]
