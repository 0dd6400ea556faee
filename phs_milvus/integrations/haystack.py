"""Haystack: a retriever, and a ranker of documents that any other retriever found; both go into YAML pipelines.

    from haystack import Pipeline
    from phs_milvus.integrations.haystack import FocusedRanker, FocusedRetriever

    pipeline = Pipeline()
    pipeline.add_component("retriever", FocusedRetriever("images", milvus="./phs_milvus.db", top_k=20))
    pipeline.add_component("ranker", FocusedRanker(top_k=3))
    pipeline.connect("retriever.documents", "ranker.documents")
    bicycle = {"image": "street.jpg", "box": [40, 60, 180, 220]}
    sign = {"image": "street.jpg", "box": [300, 60, 380, 200]}
    print(pipeline.run({"retriever": {"query": bicycle}, "ranker": {"query": sign}})["ranker"]["documents"])

A pipeline comes from its YAML by `Pipeline.loads(text, allowed_modules=["phs_milvus.*"])`; Haystack 2 takes no list.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.dataclasses import ByteStream
from haystack.utils import Secret

from phs_milvus.client.channels import Tls
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import DEFAULT_ADDRESS
from phs_milvus.contract.types import Focus
from phs_milvus.integrations.finding import find
from phs_milvus.integrations.questions import question_of
from phs_milvus.integrations.reranking import STATE_FIELD, Candidate, rank
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.connection import close, connect
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.hits import Hit
from phs_milvus.search.queries import Question
from phs_milvus.search.scores import Score


@component
class FocusedRetriever:
    """Finds the pictures that contain what a query points at.

    Connections are opened by `warm_up`, or by the first `run`, and closed by `close`.

    Args:
        collection: the collection's name.
        milvus: a Milvus Lite path ending in .db, or http(s)://host:port.
        milvus_token: "user:password" or an API key.
        encoder: "host:port" of the embedding server, or several of them.
        encoder_token, tls: as `Encoder` takes them; tls: True, or the files {"ca": ..., "cert": ..., "key": ...}.
        top_k: documents to return; `limit` elsewhere.
        score, focus: as `FocusedSearch.search` takes them; focus may be a dict of the fields of `Focus`.
        search_kwargs: its further arguments, as YAML can hold them: candidates, min_score, exclude_query, ...
        path_field: the field that becomes "file_path" in a document's meta, where Haystack's own components for
            pictures look.
    """

    def __init__(
        self,
        collection: str = "images",
        milvus: str = "./phs_milvus.db",
        milvus_token: Secret | None = None,
        encoder: str | list[str] = DEFAULT_ADDRESS,
        encoder_token: Secret | None = None,
        tls: dict[str, str] | bool | None = None,
        top_k: int = 10,
        score: Score = "blend",
        focus: Focus | dict[str, Any] = Focus(),
        search_kwargs: dict[str, Any] | None = None,
        path_field: str = "path",
    ) -> None:
        self.collection = collection
        self.milvus = milvus
        self.milvus_token = milvus_token
        self.encoder = encoder
        self.encoder_token = encoder_token
        self.tls = tls
        self.top_k = top_k
        self.score = score
        self.focus = _focus(focus)
        self.search_kwargs = search_kwargs or {}
        self.path_field = path_field
        self._opening = threading.Lock()  # a first `run_async` may come with others
        self._open: tuple[Encoder, FocusedCollection, FocusedSearch] | None = None

    def warm_up(self) -> None:
        """Connects to Milvus and to the embedding server.

        Raises:
            InvalidInput, CollectionError, ModelMismatch, EncoderError: as `connect`, `FocusedCollection.open`,
                `Encoder` and `FocusedSearch`; nothing stays open.
        """
        with self._opening, ExitStack() as undo:
            if self._open is not None:
                return
            token = self.milvus_token.resolve_value() if self.milvus_token else None
            client = connect(self.milvus, token or "")
            undo.callback(close, client)
            collection = FocusedCollection.open(client, self.collection)
            encoder = _encoder(self.encoder, self.encoder_token, self.tls)
            undo.callback(encoder.close)
            self._open = encoder, collection, FocusedSearch(collection, encoder)
            undo.pop_all()

    def close(self) -> None:
        """Closes the connections."""
        if self._open is not None:
            encoder, collection, _ = self._open
            self._open = None
            collection.close()
            encoder.close()

    @component.output_types(documents=list[Document])
    def run(self, query: Any, top_k: int | None = None, filter: str | None = None) -> dict[str, list[Document]]:
        """Searches.

        Args:
            query: a dict, a text or a Query (phs_milvus.integrations.questions), or the ByteStream of a picture.
            top_k: in place of the component's.
            filter: a Milvus expression over the rows' fields, in place of one in search_kwargs.

        Returns:
            {"documents": [...]}, best first. A document's meta holds its fields and its scores: ann_score,
            query_db_score and blend_score.

        Raises:
            As `warm_up` and `FocusedSearch.search`.
        """
        self.warm_up()
        assert self._open is not None
        options = {
            **self.search_kwargs,
            **({} if filter is None else {"filter": filter}),
            "limit": self.top_k if top_k is None else top_k,
            "score": self.score,
            "focus": self.focus,
        }
        found = find(self._open[2], _question(query), **options)
        return {"documents": [self._document(hit, metadata) for hit, metadata in found]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: Any, top_k: int | None = None, filter: str | None = None
    ) -> dict[str, list[Document]]:
        """`run`, on a thread."""
        documents: dict[str, list[Document]] = await asyncio.to_thread(self.run, query, top_k, filter)
        return documents

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's YAML; tokens only as the names of their environment variables."""
        names = ("collection", "milvus", "milvus_token", "encoder", "encoder_token", "tls", "top_k", "score")
        values = {name: getattr(self, name) for name in (*names, "search_kwargs", "path_field")}
        return default_to_dict(self, **values, focus=_focus_dict(self.focus))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FocusedRetriever:
        """The component of `to_dict`."""
        return default_from_dict(cls, data)

    def _document(self, hit: Hit, metadata: dict[str, Any]) -> Document:
        path = metadata.get(self.path_field)
        return Document(id=str(hit.id), meta=metadata | ({"file_path": path} if path else {}), score=hit.score)


@component
class FocusedRanker:
    """Ranks documents by how much their pictures look like what a query points at, whichever store they are from.

    Args:
        encoder, encoder_token, tls, score, focus: as `FocusedRetriever` takes them; of scores "blend" or "query_db".
        top_k: documents to keep; None: all.
        state_meta_field: where in the meta a document's state is, as `state.pack` made it.
        file_path_meta_field: where in the meta the path of a document's picture is. Documents without a state are
            encoded from their blob or from that path, each time, which takes a thousand times longer.
    """

    def __init__(
        self,
        encoder: str | list[str] = DEFAULT_ADDRESS,
        encoder_token: Secret | None = None,
        tls: dict[str, str] | bool | None = None,
        top_k: int | None = None,
        score: Score = "blend",
        focus: Focus | dict[str, Any] = Focus(),
        state_meta_field: str = STATE_FIELD,
        file_path_meta_field: str = "file_path",
    ) -> None:
        self.encoder = encoder
        self.encoder_token = encoder_token
        self.tls = tls
        self.top_k = top_k
        self.score = score
        self.focus = _focus(focus)
        self.state_meta_field = state_meta_field
        self.file_path_meta_field = file_path_meta_field
        self._opening = threading.Lock()
        self._open: Encoder | None = None

    def warm_up(self) -> None:
        """Opens the connection to the embedding server; whether it is there, the first `run` shows."""
        with self._opening:
            if self._open is None:
                self._open = _encoder(self.encoder, self.encoder_token, self.tls)

    def close(self) -> None:
        """Closes the connection."""
        if self._open is not None:
            self._open.close()
            self._open = None

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document], query: Any, top_k: int | None = None) -> dict[str, list[Document]]:
        """Ranks copies of the documents.

        Args:
            documents: from any retriever.
            query: as `FocusedRetriever` takes it.
            top_k: in place of the component's.

        Returns:
            {"documents": [...]}, best first, with their scores in the meta. Those that cannot be scored come last,
            without a score and with the reason as "phs_error".

        Raises:
            InvalidInput, EncoderError: as `phs_milvus.integrations.reranking.rank`.
        """
        self.warm_up()
        assert self._open is not None
        best = rank(
            self._open,
            _question(query),
            [self._candidate(document) for document in documents],
            focus=self.focus,
            score=self.score,
            top_k=self.top_k if top_k is None else top_k,
        )
        copies = []
        for one in best:
            document = documents[one.index]
            copies.append(replace(document, score=one.score, meta={**document.meta, **one.metadata}))
        return {"documents": copies}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, documents: list[Document], query: Any, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run`, on a thread."""
        ranked: dict[str, list[Document]] = await asyncio.to_thread(self.run, documents, query, top_k)
        return ranked

    def to_dict(self) -> dict[str, Any]:
        """For a pipeline's YAML; the token only as the name of its environment variable."""
        names = ("encoder", "encoder_token", "tls", "top_k", "score", "state_meta_field", "file_path_meta_field")
        return default_to_dict(self, **{name: getattr(self, name) for name in names}, focus=_focus_dict(self.focus))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FocusedRanker:
        """The component of `to_dict`."""
        return default_from_dict(cls, data)

    def _candidate(self, document: Document) -> Candidate:
        candidate = Candidate.of(document.id, document.meta, self.state_meta_field, self.file_path_meta_field)
        return candidate._replace(image=document.blob.data) if document.blob else candidate


def _question(value: Any) -> Question:
    if isinstance(value, Mapping) and isinstance(value.get("image"), ByteStream):
        value = {**value, "image": value["image"].data}
    return question_of(value.data if isinstance(value, ByteStream) else value)


def _encoder(address: str | list[str], token: Secret | None, tls: dict[str, str] | bool | None) -> Encoder:
    files = Tls(**tls) if isinstance(tls, dict) else tls
    return Encoder(address, token=token.resolve_value() if token else None, tls=files)


def _focus(value: Focus | dict[str, Any]) -> Focus:
    return value if isinstance(value, Focus) else Focus(**value)


def _focus_dict(focus: Focus) -> dict[str, Any]:
    """With the zooms as a list, which YAML has."""
    return {**asdict(focus), "zoom": list(focus.zooms)}
