"""What every request goes through, whatever its path: who calls, whether there is a place, and how it fails.

app = make_app([Route("/hello", hello)], Access(settings), settings)
with WebServer(app, settings) as server: ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phs_milvus.contract.errors import TokenRefused
from phs_milvus.web.access import Access, address_of
from phs_milvus.web.places import Places
from phs_milvus.web.problems import problem_response
from phs_milvus.web.settings import WebSettings

HEALTH = "/health"

Refused = Callable[[HTTPConnection], Response | None]


def make_app(
    routes: Sequence[BaseRoute],
    access: Access,
    settings: WebSettings,
    *,
    open_paths: frozenset[str] = frozenset(),
    refused: Refused = lambda _: None,
) -> Starlette:
    """An ASGI app of these routes and GET /health, which says that the server is there.

    Endpoints raise `PhsError`s, `Problem`s among them, and read bodies by `phs_milvus.web.bodies.read_body`. What they
    do on a processor they do on a thread (starlette.concurrency.run_in_threadpool).

    Args:
        access: who may call.
        open_paths: paths that need no token, beside /health; for a login page and what it shows.
        refused: the answer to a request without a good token, in place of the problem 401: a login page's. None: that
            problem.
    """
    return Starlette(
        routes=[Route(HEALTH, _health), *routes],
        middleware=[
            Middleware(
                _Guard,
                access=access,
                places=Places(settings.max_body_bytes),
                open_paths=open_paths | {HEALTH},
                refused=refused,
            )
        ],
        exception_handlers={HTTPException: _answer_problem},
    )


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ready"})


async def _answer_problem(_: Request, error: Exception) -> Response:
    return problem_response(error)


class _Guard:
    """Lets a request in, and answers for it where it fails."""

    def __init__(
        self, app: ASGIApp, access: Access, places: Places, open_paths: frozenset[str], refused: Refused
    ) -> None:
        self._app = app
        self._access = access
        self._places = places
        self._open_paths = open_paths
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the app's own start and end; there are no web sockets
            await self._app(scope, receive, send)
            return
        started, more = False, True

        async def receiving() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._let_in(scope, receiving, sending)
        except ClientDisconnect:
            return
        except Exception as error:
            answer = problem_response(error)
            if not started:  # or else it is too late for another answer: uvicorn closes the connection
                # Who is answered while still sending may see no more than a reset.
                left = 2 * self._places.body_bytes
                while more and left > 0:
                    left -= len((await receiving()).get("body", b""))
                await answer(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        self._access.check_origin(connection)
        try:
            token = "" if scope["path"] in self._open_paths else self._access.identify(connection)
        except TokenRefused:
            answer = self._refused(connection)
            if answer is None:
                raise
            await answer(scope, receive, send)
            return
        with self._places.taken(token or address_of(connection)) as scope["phs.place"]:
            await self._app(scope, receive, send)
