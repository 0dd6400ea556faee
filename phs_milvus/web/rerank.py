"""POST /rerank: stored states scored for Milvus's own search, in the words of three reranking services.

    Text Embeddings Inference   {"query", "texts"}              [{"index", "score"}]
    vLLM                        {"query", "documents"}          {"results": [{"index", "relevance_score"}]}
    Cohere                      the same, with "top_n"          the same

The query is a packed query (phs_milvus.search.packed_query), a text or document a packed state
(phs_milvus.contract.state). Other fields are ignored. Milvus fails the whole search where one request fails, after
trying three times; so what is no state of this model scores -1, the least that a cosine can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state
from phs_milvus.contract.errors import InvalidInput, StateError
from phs_milvus.contract.types import MOST_READOUTS, Float32Array, States
from phs_milvus.search.packed_query import unpack_query
from phs_milvus.web.bodies import read_body

NO_STATE = np.float32(-1)
# For all that a request needs: Milvus waits for 30, and then sends it again.
_SECONDS = 25.0
# Characters outside of texts that JSON of this shape may have; each may become a Python object of 50 bytes and more.
_MOST_VALUES, _MOST_LISTS = MOST_READOUTS + 1000, 100


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        query: whatever stood there.
        texts: K values, packed states where they are any.
        field: what the caller calls them, "texts" or "documents".
        top_n: number of results to return; None for all.
    """

    query: object
    texts: list[Any]
    field: str
    top_n: int | None


class RerankEndpoint:
    """Answers POST /rerank, under any path prefix, with the scores of an embedding server."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def routes(self) -> list[Route]:
        """For `phs_milvus.web.app.make_app`."""
        return [Route(path, self._serve, methods=["POST"]) for path in ("/rerank", "/{prefix:path}/rerank")]

    async def _serve(self, request: Request) -> Response:
        body = await read_body(request)
        return Response(await run_in_threadpool(self.answer, body), media_type="application/json")

    def answer(self, body: bytes) -> bytes:
        """The answer to one request, as JSON.

        Raises:
            InvalidInput: no such request, or no packed query; `.field` names what is wrong.
            ModelMismatch: a query of another model than the embedding server's.
            EncoderError: the embedding server could not answer.
        """
        asked = parse(body)
        scores = self._scores(asked)
        best = np.argsort(-scores, kind="stable")[: asked.top_n]
        named = "score" if asked.field == "texts" else "relevance_score"
        results = [{"index": index, named: float(scores[index])} for index in best.tolist()]
        return orjson.dumps(results if asked.field == "texts" else {"results": results})

    def _scores(self, asked: Asked) -> Float32Array:
        info = self._encoder.info
        comparison = unpack_query(asked.query, info)
        readouts = len(np.unique(comparison.head_weights, axis=0)) * len(asked.texts)
        if readouts > MOST_READOUTS:
            raise InvalidInput(
                f"{len(asked.texts):,} states for this query make {readouts:,} readouts, and one request may ask for "
                f"{MOST_READOUTS:,}; send less at once",
                asked.field,
            )
        scores = np.full(len(asked.texts), NO_STATE)
        positions, states = _states(asked.texts, info.hidden_size)
        if len(positions):
            scores[positions] = comparison.scores(self._encoder, states, timeout=_SECONDS)
        return scores


def parse(body: bytes) -> Asked:
    """Reads a request, whichever service's words it uses.

    Raises:
        InvalidInput: no JSON object of such a shape; `.field` names what is wrong.
    """
    # Before it becomes objects, many times as large.
    if body.count(b",") > _MOST_VALUES or body.count(b"[") + body.count(b"{") > _MOST_LISTS:
        raise InvalidInput(f"holds more than {MOST_READOUTS:,} values, or lists within lists", "body")
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"is not JSON: {error}", "body") from None
    if not isinstance(values, dict):
        raise InvalidInput("must be a JSON object", "body")
    named = [name for name in ("texts", "documents") if name in values]
    if len(named) != 1:
        raise InvalidInput('must have "query", and one of "texts" and "documents"', "body")
    (field,) = named
    if not isinstance(values[field], list):
        raise InvalidInput("must be a list of packed states", field)
    top_n = values.get("top_n")
    if top_n is not None and not (isinstance(top_n, int) and not isinstance(top_n, bool) and top_n >= 1):
        raise InvalidInput("must be a whole number from 1", "top_n")
    return Asked(values.get("query"), values[field], field, top_n)


def _states(texts: list[Any], hidden_size: int) -> tuple[npt.NDArray[np.int64], States]:
    """The positions of texts that are states, and those states."""
    try:
        return np.arange(len(texts)), state.unpack_stored(texts, hidden_size)
    except StateError:
        pass
    found = {}
    for position, text in enumerate(texts):
        try:
            found[position] = state.unpack([text], hidden_size)
        except StateError:
            continue
    states = np.concatenate(list(found.values())) if found else np.empty((0, 2, hidden_size), np.float16)
    return np.array(list(found), np.int64), states
