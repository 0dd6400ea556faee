"""Milvus's own reranking by a model, pointed at `phs-milvus rerank-endpoint`.

Milvus 2.6 and newer call a reranking service for the candidates of a search; Milvus Lite 3.2 has one of them, Cohere's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.contract.types import Float32Array
from phs_milvus.milvus.collection import MAX_LIMIT, FocusedCollection
from phs_milvus.milvus.connection import AnnSearchRequest, Function, FunctionType, is_lite, translated_errors
from phs_milvus.milvus.options import ef_for

Provider: TypeAlias = Literal["tei", "vllm", "cohere"]

_FIRST_VERSION = (2, 6)
# Whatever Milvus names the model: this endpoint has one.
_MODEL = "phs"


class ModelRanker(Function):  # type: ignore[misc]  # pymilvus has no types
    """A pymilvus Function that reranks by stored states; `FocusedSearch.ranker` makes it.

    Attributes:
        vectors: float32 [Q, E], the queries' embeddings for stage one, in the order of the ranker's queries.
    """

    def __init__(
        self, collection: FocusedCollection, queries: Sequence[str], vectors: Float32Array, params: dict[str, Any]
    ) -> None:
        at = collection.layout
        super().__init__(
            "phs",
            FunctionType.RERANK,
            [at.state],
            params={"reranker": "model", "queries": list(queries), "max_client_batch_size": MAX_LIMIT, **params},
        )
        self.vectors = vectors
        self._embedding = at.embedding

    def request(self, limit: int, *, filter: str = "") -> Any:
        """Stage one for `MilvusClient.hybrid_search`: the nearest rows to each query, which are all reranked.

        Args:
            limit: rows per query, 1 to 16,384.
            filter: a Milvus expression.

        Returns:
            pymilvus's AnnSearchRequest.

        Raises:
            InvalidInput: a limit out of range.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"must be 1 to {MAX_LIMIT}, got {limit}", "limit")
        param = {"params": {"ef": ef_for(limit)}}
        return AnnSearchRequest(list(self.vectors), self._embedding, param, limit, expr=filter or None)


def model_ranker(
    collection: FocusedCollection,
    queries: Sequence[str],
    vectors: Float32Array,
    *,
    provider: Provider,
    endpoint: str | None,
    token: str | None,
    credential: str | None,
) -> ModelRanker:
    """A ranker for these packed queries; the other arguments are those of `FocusedSearch.ranker`.

    Raises:
        InvalidInput: an argument that this Milvus cannot use; `.field` names it.
        CollectionError: this Milvus would ignore a ranker, or cannot rerank by the field of the states.
    """
    if provider not in get_args(Provider):
        raise InvalidInput(f"must be one of {', '.join(get_args(Provider))}, got {shown(provider)!r}", "provider")
    with translated_errors("cannot reach Milvus"):
        version = collection.client.get_server_version()
        fields = collection.client.describe_collection(collection.name)["fields"]
    if is_lite(collection.client):
        params = _for_lite(provider, endpoint, token, credential)
    else:
        _check_version(version)
        params = _for_server(provider, endpoint, token, credential)
    field = next((field for field in fields if field["name"] == collection.layout.state), None)
    if field is None or field.get("nullable"):
        what = "holds no states in its own rows" if field is None else f"may have null in field {field['name']!r}"
        raise CollectionError(
            f"collection {collection.name!r} {what}, and Milvus reranks by a field that every row has; search it with "
            "FocusedSearch.search"
        )
    return ModelRanker(collection, queries, vectors, {"provider": provider, **params})


def _check_version(version: str) -> None:
    found = re.search(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < _FIRST_VERSION:
        raise CollectionError(
            f"Milvus {shown(version)} ignores rerankers, which work from 2.6 on; use FocusedSearch.search"
        )


def _for_lite(provider: Provider, endpoint: str | None, token: str | None, credential: str | None) -> dict[str, Any]:
    if provider != "cohere":
        raise InvalidInput(f"Milvus Lite has cohere only, got {provider}", "provider")
    if credential:
        raise InvalidInput("Milvus Lite keeps no credentials; pass the token itself", "credential")
    # Lite asks for a key, and sends it.
    return {"base_url": _checked(endpoint).rstrip("/"), "api_key": token or "none", "model_name": _MODEL}


def _for_server(provider: Provider, endpoint: str | None, token: str | None, credential: str | None) -> dict[str, Any]:
    if token:
        raise InvalidInput(
            "a Milvus server sends tokens out of its own milvus.yaml (credential.NAME.apikey); pass credential=NAME",
            "token",
        )
    params: dict[str, Any] = {"credential": credential} if credential else {}
    if provider == "cohere":
        if endpoint:
            raise InvalidInput(
                "a Milvus server has Cohere's URL in its own milvus.yaml (function.rerank.model.providers.cohere.url); "
                "leave it out, or use tei or vllm",
                "endpoint",
            )
        return {**params, "model_name": _MODEL}
    if urlsplit(_checked(endpoint)).path not in ("", "/", "/rerank"):
        raise InvalidInput(f"Milvus calls /rerank of the host, whatever the path; got {shown(endpoint)}", "endpoint")
    return {**params, "endpoint": endpoint}


def _checked(endpoint: str | None) -> str:
    try:
        parsed = urlsplit(endpoint or "")
        if parsed.scheme in ("http", "https") and parsed.hostname:
            return endpoint or ""
    except ValueError:
        pass
    raise InvalidInput(
        f"must be where Milvus reaches phs-milvus rerank-endpoint, as http://host:8766; got {shown(endpoint)}",
        "endpoint",
    )
