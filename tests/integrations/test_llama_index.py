"""LlamaIndex's own nodes, query engines and indices over a real server and a real Milvus."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from phs_milvus import Encoder, FocusedSearch, InvalidInput, Query, StateError
from phs_milvus.search.aio import AsyncFocusedSearch
from tests.integrations.support import BOX, expected, needs, query, run_example

needs("llama_index.core")
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex  # noqa: E402
from llama_index.core.llms import MockLLM  # noqa: E402
from llama_index.core.query_engine import RetrieverQueryEngine  # noqa: E402
from llama_index.core.schema import ImageNode, MetadataMode, NodeWithScore, QueryBundle, TextNode  # noqa: E402

from phs_milvus.integrations import llama_index  # noqa: E402
from phs_milvus.integrations.llama_index import FocusedQuery, FocusedRerank, FocusedRetriever  # noqa: E402

HIDDEN = {"excluded_embed_metadata_keys": ["phs_state"], "excluded_llm_metadata_keys": ["phs_state"]}


@pytest.fixture
def nodes(states: dict[str, str]) -> list[NodeWithScore]:
    """The photos as a text search might have found them: in an order that has nothing to do with the query."""
    return [
        NodeWithScore(node=TextNode(id_=Path(path).name, text="about it", metadata={"phs_state": packed}, **HIDDEN))
        for path, packed in sorted(states.items(), key=lambda item: item[1])
    ]


def test_the_example(milvus_uri: str, address: str, search: FocusedSearch, tmp_path: Path) -> None:
    found = run_example(llama_index, tmp_path, {"127.0.0.1:50051": address, "./phs_milvus.db": milvus_uri})
    assert len(found["nodes"]) == 5 and len(found["best"]) == 3
    assert {one.node_id for one in found["best"]} <= {one.node_id for one in found["nodes"]}


def test_nodes_are_the_hits_of_a_search(search: FocusedSearch, photos: list[Path]) -> None:
    ids, scores = expected(search, query(photos))
    retriever = FocusedRetriever(search, similarity_top_k=7)
    asked = FocusedQuery("never looked at", question={"image": str(photos[3]), "box": [20, 10, 90, 70]})
    bounded = FocusedRetriever(AsyncFocusedSearch(search, in_flight=1), similarity_top_k=7)
    answers = [
        retriever.retrieve(asked),
        asyncio.run(retriever.aretrieve(asked)),
        asyncio.run(bounded.aretrieve(asked)),
    ]
    for nodes in answers:
        assert [one.node_id for one in nodes] == ids[:7]
        assert [one.score for one in nodes] == pytest.approx([scores[name] for name in ids[:7]], abs=1e-5)
    best = nodes[0].node
    assert isinstance(best, ImageNode) and best.image_path == str(photos[3])
    assert best.metadata["digest"] and best.get_content(MetadataMode.LLM) == best.get_content(MetadataMode.EMBED) == ""


def test_plain_bundles_and_texts_point_too(search: FocusedSearch, photos: list[Path]) -> None:
    retriever = FocusedRetriever(search, similarity_top_k=5, search_kwargs={"score": "query_db"})
    whole = expected(search, Query(photos[3]), score="query_db")[0][:5]
    assert [one.node_id for one in retriever.retrieve(QueryBundle("text", image_path=str(photos[3])))] == whole
    boxed = expected(search, query(photos), score="query_db")[0][:5]
    assert [one.node_id for one in retriever.retrieve(f"{photos[3]}:20,10,90,70")] == boxed
    with pytest.raises(InvalidInput, match="empty; give an image"):
        retriever.retrieve(FocusedQuery())


def test_nodes_of_others_are_reranked_by_pointing(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], nodes: list[NodeWithScore]
) -> None:
    ids, scores = expected(search, query(photos))
    asked = FocusedQuery(question=query(photos))
    reranker = FocusedRerank(encoder=encoder)
    for best in (
        reranker.postprocess_nodes(nodes, asked),
        asyncio.run(reranker.apostprocess_nodes(nodes, query_str=f"{photos[3]}:20,10,90,70")),
    ):
        assert [one.node_id for one in best] == ids
        assert [one.score for one in best] == pytest.approx([scores[name] for name in ids], abs=2e-4)
        assert all(one.node.get_content(MetadataMode.LLM) == "about it" for one in best)
        assert best[0].node.metadata["query_db_score"] <= 1
    assert len(FocusedRerank(encoder=encoder, top_n=2).postprocess_nodes(nodes, asked)) == 2
    assert all("query_db_score" not in one.metadata and one.score is None for one in nodes)
    with pytest.raises(InvalidInput, match="give a FocusedQuery"):
        reranker.postprocess_nodes(nodes)


def test_image_nodes_need_no_state(encoder: Encoder, photos: list[Path], nodes: list[NodeWithScore]) -> None:
    inside = base64.b64encode(photos[3].read_bytes()).decode()
    some = [
        ImageNode(id_="file", image_path=str(photos[5])),
        ImageNode(id_="inside", image=inside),
        TextNode(id_="path", text="", metadata={"file_path": str(photos[6])}),
        ImageNode(id_="broken", image="!"),
        TextNode(id_="text", text="no picture"),
    ]
    reranker = FocusedRerank(encoder=encoder)
    best = reranker.postprocess_nodes([NodeWithScore(node=one) for one in some], FocusedQuery(question=query(photos)))
    assert best[0].node_id == "inside" and {one.node_id for one in best[1:3]} == {"file", "path"}
    assert [(one.node_id, one.score) for one in best[3:]] == [("broken", None), ("text", None)]
    assert "neither a state nor a picture" in best[4].metadata["phs_error"]
    with pytest.raises(StateError, match="neither a state nor a picture"):
        reranker.postprocess_nodes([NodeWithScore(node=some[4])], FocusedQuery(question=query(photos)))


def test_it_is_stored_without_its_connection(encoder: Encoder) -> None:
    stored = FocusedRerank(encoder=encoder, top_n=4, score="query_db").to_dict()
    assert stored["class_name"] == "FocusedRerank" and "encoder" not in stored
    assert FocusedRerank.from_dict(stored, encoder=encoder).top_n == 4


def test_a_query_engine_retrieves_and_reranks(search: FocusedSearch, encoder: Encoder, photos: list[Path]) -> None:
    """The bundle goes through the engine as it is, so that both of its stages know what is pointed at."""
    engine = RetrieverQueryEngine.from_args(
        FocusedRetriever(search, similarity_top_k=8),
        llm=MockLLM(),
        node_postprocessors=[FocusedRerank(encoder=encoder, image_field="path", top_n=3)],
    )
    answer = engine.query(FocusedQuery(question=query(photos)))
    assert [one.node_id for one in answer.source_nodes] == expected(search, query(photos))[0][:3]


@pytest.mark.parametrize("store", ["in memory", "Milvus"])
def test_indices_of_llama_index_are_reranked(
    search: FocusedSearch, encoder: Encoder, photos: list[Path], nodes: list[NodeWithScore], store: str, tmp_path: Path
) -> None:
    """An index of texts and embeddings of its own, with states as metadata: a text finds, a box ranks."""
    context = None
    if store == "Milvus":
        milvus = needs("llama_index.vector_stores.milvus").MilvusVectorStore(uri=str(tmp_path / "own.db"), dim=8)
        context = StorageContext.from_defaults(vector_store=milvus)
    index = VectorStoreIndex([one.node for one in nodes], context, embed_model=MockEmbedding(8))
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=len(nodes),
        node_postprocessors=[FocusedRerank(encoder=encoder)],
    )
    answer = engine.query(FocusedQuery("a bicycle in front of a shop", question=Query(photos[3], BOX)))
    assert [one.node_id for one in answer.source_nodes] == expected(search, query(photos))[0]
