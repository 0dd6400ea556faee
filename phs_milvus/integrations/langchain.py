"""LangChain: a retriever, and a reranker of documents that any other retriever found.

    from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, Query, connect
    from phs_milvus.integrations.langchain import FocusedRerank, FocusedRetriever

    with Encoder("127.0.0.1:50051") as encoder:
        collection = FocusedCollection.open(connect("./phs_milvus.db"), "images")
        retriever = FocusedRetriever(search=FocusedSearch(collection, encoder), k=5)
        documents = retriever.invoke(Query("street.jpg", Box(40, 60, 180, 220)))
        reranker = FocusedRerank(encoder=encoder, image_field="path", top_n=3)
        best = reranker.compress_documents(documents, Query("street.jpg", Box(300, 60, 380, 200)))

A query may also be a dict or a text (phs_milvus.integrations.questions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict, Field

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.types import Focus
from phs_milvus.integrations.finding import Searches, find, on_thread
from phs_milvus.integrations.questions import question_of
from phs_milvus.integrations.reranking import STATE_FIELD, Candidate, Ranked, rank
from phs_milvus.search.scores import Score


class FocusedRetriever(BaseRetriever):
    """Finds the pictures that contain what a query points at.

    `invoke`, `ainvoke`, `batch` and the like take a Query, a dict or a text; see phs_milvus.integrations.questions.
    Keyword arguments go to `FocusedSearch.search`, for this call alone: `retriever.invoke(query, filter="size > 3")`.

    Attributes:
        search: a FocusedSearch, or an AsyncFocusedSearch, whose in_flight then bounds `ainvoke` and `abatch`.
        k: documents to return; `limit` elsewhere.
        search_kwargs: further arguments of `FocusedSearch.search`, for every call: filter, score, focus, localize, ...
        content_field: the field that becomes a document's page_content; its id, where it has no such field.

    A document's metadata holds its fields, and its scores: relevance_score, by which it is ranked, ann_score,
    query_db_score and blend_score. Errors are those of `FocusedSearch.search`.
    """

    search: Searches
    k: int = 10
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    content_field: str = "path"

    def _get_relevant_documents(
        self, query: Any, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        options = {"k": self.k, **self.search_kwargs, **kwargs}
        limit = options.pop("k")
        return [
            Document(
                page_content=str(metadata.get(self.content_field) or hit.id),
                id=str(hit.id),
                metadata={**metadata, "relevance_score": hit.score},
            )
            for hit, metadata in find(self.search, question_of(query), **{"limit": limit, **options})
        ]

    async def _aget_relevant_documents(
        self, query: Any, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        sync = run_manager.get_sync()
        return await on_thread(self.search, self._get_relevant_documents, query, run_manager=sync, **kwargs)


class FocusedRerank(BaseDocumentCompressor):
    """Ranks documents by how much their pictures look like what a query points at, whichever store they are from.

    Attributes:
        encoder: a client of the embedding server.
        top_n: documents to keep; None: all.
        state_field: of the metadata, where a document's state is, as `state.pack` made it.
        image_field: of the metadata, where the path of a document's picture is. Documents without a state are encoded
            from it, each time, which takes a thousand times longer.
        score: "blend" or "query_db"; as `FocusedSearch.search` would score these pictures.
        focus: how to focus on the prompt.

    Documents that are returned have their score in the metadata, as "relevance_score", beside ann_score, query_db_score
    and blend_score. Those that cannot be scored come last, with the reason as "phs_error"; where no document can be,
    the reason is raised. Other errors are those of `phs_milvus.integrations.reranking.rank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    encoder: Encoder
    top_n: int | None = None
    state_field: str = STATE_FIELD
    image_field: str = "source"
    score: Score = "blend"
    focus: Focus = Focus()

    def compress_documents(
        self, documents: Sequence[Document], query: Any, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents, best first; `query` as `FocusedRetriever` takes it. They are copied, not changed."""
        candidates = [
            Candidate.of(document.id or number, document.metadata, self.state_field, self.image_field)
            for number, document in enumerate(documents)
        ]
        best = rank(self.encoder, question_of(query), candidates, focus=self.focus, score=self.score, top_k=self.top_n)
        return [_with(documents[one.index], one) for one in best]


def _with(document: Document, ranked: Ranked) -> Document:
    relevance = {} if ranked.score is None else {"relevance_score": ranked.score}
    return document.model_copy(update={"metadata": {**document.metadata, **relevance, **ranked.metadata}})
