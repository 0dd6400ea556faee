"""The API's endpoints: from requests to `Service` and back, on a bounded number of threads."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from phs_milvus.web.api.document import as_page, document
from phs_milvus.web.api.fields import Field, read
from phs_milvus.web.api.questions import EXPLAIN, LOCATE, SEARCH
from phs_milvus.web.api.service import Service
from phs_milvus.web.bodies import read_body
from phs_milvus.web.renditions import size_of

Result = TypeVar("Result")

_JSON_BYTES = 512 * 2**10
# Two cores answer four searches about as fast as two; what is beyond waits, and is dropped when nobody waits for it.
_AT_ONCE = 4
_SHOWN_FOR = "private, max-age=60, stale-while-revalidate=86400"


class _Threads:
    """Runs blocking work for requests, `_AT_ONCE` at a time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def run(self, request: Request, work: Callable[[], Result]) -> Result:
        """The result of `work`.

        Raises:
            ClientDisconnect: the caller has gone before its turn came, as a page does whose prompt has moved on.
        """
        async with self._free:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await to_thread.run_sync(work)


def api_routes(service: Service) -> list[Route]:
    """Every path of the API, its document, and the rows' pictures."""
    # Pictures have threads of their own: a page of thumbnails does not hold up the next search.
    searching, drawing = _Threads(), _Threads()

    async def answered(request: Request, work: Callable[[], Any]) -> Response:
        def encoded() -> bytes:
            return json.dumps(work(), separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
                "utf-8", "replace"
            )

        headers = {"Cache-Control": "no-store"}
        return Response(await searching.run(request, encoded), media_type="application/json", headers=headers)

    def posted(fields: Sequence[Field], answer: Callable[[dict[str, Any]], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            values = read(await read_body(request, _JSON_BYTES), fields)
            return await answered(request, lambda: answer(values))

        return endpoint

    async def info(request: Request) -> Response:
        return await answered(request, service.info)

    async def rows(request: Request) -> Response:
        asked = request.query_params
        return await answered(request, lambda: service.rows(asked.get("after"), asked.get("limit", "60")))

    async def row(request: Request) -> Response:
        return await answered(request, lambda: service.row(request.path_params["id"]))

    async def hold(request: Request) -> Response:
        data = await read_body(request)
        answer = await searching.run(request, lambda: service.hold(data))
        return JSONResponse(answer, 201, {"Location": f"/api/v1/pictures/{answer['picture']}"})

    async def picture(request: Request) -> Response:
        digest, size = request.path_params["digest"], size_of(request.query_params.get("size", "1600"))
        key = await drawing.run(request, lambda: service.upload_key(digest))
        return await drawn(request, key, size, lambda: service.draw_upload(digest, size))

    async def image(request: Request) -> Response:
        size = size_of(request.query_params.get("size", "512"))
        row_id, key = await drawing.run(request, lambda: service.row_key(request.path_params["id"]))
        return await drawn(request, key, size, lambda: service.draw_row(row_id, size))

    async def drawn(request: Request, key: str, size: int, draw: Callable[[], bytes]) -> Response:
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        headers = {"ETag": f'"{digest[:24]}-{size}"', "Cache-Control": _SHOWN_FOR}
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(await drawing.run(request, draw), media_type="image/jpeg", headers=headers)

    async def described(_: Request) -> Response:
        return JSONResponse(document())

    async def page(_: Request) -> Response:
        return HTMLResponse(as_page(document()))

    return [
        Route("/api/v1/info", info),
        Route("/api/v1/rows", rows),
        Route("/api/v1/rows/{id:path}", row),
        Route("/api/v1/pictures", hold, methods=["POST"]),
        Route("/api/v1/pictures/{digest}", picture),
        Route("/api/v1/search", posted(SEARCH, service.search), methods=["POST"]),
        Route("/api/v1/explain", posted(EXPLAIN, service.explain), methods=["POST"]),
        Route("/api/v1/locate", posted(LOCATE, service.locate), methods=["POST"]),
        Route("/api/v1/openapi.json", described),
        Route("/api", page),
        Route("/image/{id:path}", image),
    ]
