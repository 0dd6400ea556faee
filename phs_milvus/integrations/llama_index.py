"""LlamaIndex: a retriever, and a postprocessor that reranks nodes which any other retriever found.

    from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, Query, connect
    from phs_milvus.integrations.llama_index import FocusedQuery, FocusedRerank, FocusedRetriever

    with Encoder("127.0.0.1:50051") as encoder:
        collection = FocusedCollection.open(connect("./phs_milvus.db"), "images")
        retriever = FocusedRetriever(FocusedSearch(collection, encoder), similarity_top_k=5)
        nodes = retriever.retrieve(FocusedQuery(question=Query("street.jpg", Box(40, 60, 180, 220))))
        reranker = FocusedRerank(encoder=encoder, top_n=3)
        best = reranker.postprocess_nodes(nodes, FocusedQuery(question=Query("street.jpg", Box(300, 60, 380, 200))))

The ImageNodes of an index of your own are ranked in the same way, whatever found them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore, QueryBundle

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Focus
from phs_milvus.integrations.finding import Searches, find, on_thread
from phs_milvus.integrations.questions import question_of
from phs_milvus.integrations.reranking import STATE_FIELD, Candidate, rank
from phs_milvus.milvus.rows import Id
from phs_milvus.search.queries import Question
from phs_milvus.search.scores import Score


@dataclass
class FocusedQuery(QueryBundle):
    """A QueryBundle that points at something; `query_str` is for the other stages of a query engine.

    Attributes:
        question: a Query, a dict or a text; see phs_milvus.integrations.questions.
    """

    query_str: str = ""
    question: Any = None


class FocusedRetriever(BaseRetriever):
    """Finds the pictures that contain what a query points at, as ImageNodes.

    `retrieve` and `aretrieve` take a FocusedQuery; a QueryBundle with an image_path, for all of that image; or a text
    as in phs_milvus.integrations.questions.

    Args:
        search: a FocusedSearch, or an AsyncFocusedSearch, whose in_flight then bounds `aretrieve`.
        similarity_top_k: nodes to return; `limit` elsewhere.
        path_field: the field that becomes a node's image_path.
        search_kwargs: further arguments of `FocusedSearch.search`: filter, score, focus, localize, ...

    A node's metadata holds its fields and its scores: ann_score, query_db_score and blend_score; language models and
    embeddings see none of it. Errors are those of `FocusedSearch.search`.
    """

    def __init__(
        self,
        search: Searches,
        *,
        similarity_top_k: int = 10,
        path_field: str = "path",
        search_kwargs: Mapping[str, Any] | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        self._search = search
        self._options = {"limit": similarity_top_k, **(search_kwargs or {})}
        self._path_field = path_field

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = find(self._search, _question(query_bundle), **self._options)
        return [NodeWithScore(node=self._node(hit.id, metadata), score=hit.score) for hit, metadata in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await on_thread(self._search, self._retrieve, query_bundle)

    def _node(self, row_id: Id, metadata: dict[str, Any]) -> ImageNode:
        hidden = {"excluded_embed_metadata_keys": list(metadata), "excluded_llm_metadata_keys": list(metadata)}
        return ImageNode(id_=str(row_id), image_path=metadata.get(self._path_field), metadata=metadata, **hidden)


class FocusedRerank(BaseNodePostprocessor):
    """Ranks nodes by how much their pictures look like what a query points at, whichever index they are from.

    Attributes:
        encoder: a client of the embedding server.
        top_n: nodes to keep; None: all.
        state_field: of the metadata, where a node's state is, as `state.pack` made it. Put its name into the node's
            excluded_embed_metadata_keys and excluded_llm_metadata_keys: it is thousands of letters long.
        image_field: of the metadata, where the path of a picture is, for nodes that are no ImageNode of a file. Nodes
            without a state are encoded from their picture, each time, which takes a thousand times longer.
        score: "blend" or "query_db"; as `FocusedSearch.search` would score these pictures.
        focus: how to focus on the prompt.

    Queries are those of `FocusedRetriever`. All scores are in a node's metadata. Nodes that cannot be scored come last,
    without a score and with the reason as "phs_error"; where no node can be, the reason is raised. Other errors are
    those of `phs_milvus.integrations.reranking.rank`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    encoder: Encoder = Field(exclude=True)
    top_n: int | None = None
    state_field: str = STATE_FIELD
    image_field: str = "file_path"
    score: Score = "blend"
    focus: Focus = Focus()

    @classmethod
    def class_name(cls) -> str:
        """The name by which LlamaIndex stores it."""
        return "FocusedRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInput("missing: give a FocusedQuery, which says what is pointed at", "query_bundle")
        candidates = [self._candidate(one.node) for one in nodes]
        question = _question(query_bundle)
        best = rank(self.encoder, question, candidates, focus=self.focus, score=self.score, top_k=self.top_n)
        ranked = []
        for one in best:
            node = nodes[one.index].node.model_copy()
            node.metadata = {**node.metadata, **one.metadata}
            for hidden in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
                hidden += [key for key in one.metadata if key not in hidden]
            ranked.append(NodeWithScore(node=node, score=one.score))
        return ranked

    def _candidate(self, node: BaseNode) -> Candidate:
        candidate = Candidate.of(node.node_id, node.metadata, self.state_field, self.image_field)
        image = _image_of(node)
        return candidate if image is None else candidate._replace(image=image)


def _question(bundle: QueryBundle) -> Question:
    if isinstance(bundle, FocusedQuery) and bundle.question is not None:
        return question_of(bundle.question)
    return question_of(bundle.image_path or bundle.query_str)


def _image_of(node: BaseNode) -> ImageSource | None:
    """The picture in or of an ImageNode; URLs are not fetched."""
    if not isinstance(node, ImageNode):
        return None
    try:
        return base64.b64decode(node.image) if node.image else node.image_path
    except binascii.Error:
        return b""  # which is no image, and reported as such
