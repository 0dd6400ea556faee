"""The page as a site: its files, its login, its API, and the headers that keep other sites out of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import html
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phs_milvus.web.access import Access, authorization_header
from phs_milvus.web.api.routes import api_routes
from phs_milvus.web.api.service import Service
from phs_milvus.web.app import make_app
from phs_milvus.web.bodies import read_body
from phs_milvus.web.settings import WebSettings

STATIC = Path(__file__).parent / "static"
_LOGIN = "/login"
_OPEN_PATHS = frozenset({_LOGIN, "/static/base.css", "/static/login.css", "/static/icon.svg"})
_COOKIE = "phs_token"
_LONGEST_FORM = 8192
_PAUSE_SECONDS = 0.5

_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    # Without a referrer browsers say that the origin of a login is null.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


def make_site(service: Service, settings: WebSettings) -> ASGIApp:
    """The page with its API as an ASGI app; where the settings have tokens, behind a login."""
    access = Access(settings, _credentials)
    routes: list[BaseRoute] = [
        Route("/", _page),
        *api_routes(service),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    if settings.tokens is not None:
        routes += _login_routes(access, secure=bool(settings.tls_cert))
    app = make_app(routes, access, settings, open_paths=_OPEN_PATHS, refused=_to_login)
    return _WithHeaders(app)


async def _page(_: Request) -> Response:
    return FileResponse(STATIC / "index.html")


def _credentials(connection: HTTPConnection) -> str:
    """As in the header Authorization, or in the cookie that the login page sets: no page of another site can make a
    browser send it, because it is SameSite."""
    if header := authorization_header(connection):
        return header
    try:
        token = base64.urlsafe_b64decode(connection.cookies.get(_COOKIE, "")).decode("ascii")
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {token}" if token else ""


def _to_login(connection: HTTPConnection) -> Response | None:
    """People are shown the login page; programs get the problem."""
    if "text/html" not in connection.headers.get("accept", ""):
        return None
    target = connection.url.path + (f"?{connection.url.query}" if connection.url.query else "")
    return RedirectResponse(f"{_LOGIN}?next={quote(target, safe='')}", 303)


def _login_routes(access: Access, *, secure: bool) -> list[Route]:
    async def show(request: Request) -> Response:
        return _login_page(request.query_params.get("next", "/"), "")

    async def enter(request: Request) -> Response:
        form = parse_qs((await read_body(request, _LONGEST_FORM)).decode("utf-8", "replace"))
        token, target = (form.get(name, [""])[0] for name in ("token", "next"))
        if not access.knows(token.strip()):
            await asyncio.sleep(_PAUSE_SECONDS)
            return _login_page(target, "This token is not known here.", 403)
        answer = RedirectResponse(_local(target), 303)
        value = base64.urlsafe_b64encode(token.strip().encode()).decode()
        answer.set_cookie(_COOKIE, value, httponly=True, samesite="strict", secure=secure)
        return answer

    async def leave(_: Request) -> Response:
        answer = RedirectResponse(_LOGIN, 303)
        answer.delete_cookie(_COOKIE, httponly=True, samesite="strict", secure=secure)
        return answer

    return [
        Route(_LOGIN, show, methods=["GET"]),
        Route(_LOGIN, enter, methods=["POST"]),
        Route("/logout", leave, methods=["POST"]),
    ]


def _login_page(target: str, problem: str, status: int = 200) -> Response:
    text = (STATIC / "login.html").read_text("utf-8")
    shown = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    text = text.replace("<!--problem-->", shown).replace("<!--next-->", html.escape(_local(target)))
    return HTMLResponse(text, status, {"Cache-Control": "no-store"})


def _local(target: str) -> str:
    """A path of this site: a login does not lead to another one."""
    try:
        parts = urlsplit(target)
    except ValueError:
        return "/"
    if parts.scheme or parts.netloc or not target.startswith("/") or target.startswith(("//", "/\\")):
        return "/"
    return target


class _WithHeaders:
    """Adds to every answer what browsers are to keep to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-cache"))
                message = {**message, "headers": [*headers, *_HEADERS]}
            await send(message)

        await self._app(scope, receive, sending)
