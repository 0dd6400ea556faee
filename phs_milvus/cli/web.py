<<<<<<< HEAD
"""`phs-milvus web`: the page to point in."""
=======
"""`phs-milvus rerank-endpoint`, and the flags of every command that speaks HTTP."""
>>>>>>> endpoint

from __future__ import annotations

import argparse
<<<<<<< HEAD
import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from phs_milvus.cli.connections import (
    add_encoder_flags,
    add_milvus_flags,
    address_of,
    is_missing,
    named_encoder,
    own_server,
)
from phs_milvus.contract.errors import CollectionError, PhsError, shown

DEFAULT_PORT = 8765
EXTRA = "the page needs the web extra ({}): pip install 'phs-milvus[web]'"
=======
from typing import Any

from phs_milvus.cli.connections import add_encoder_flags, open_encoder
from phs_milvus.contract.errors import PhsError

RERANK_PORT = 8766
>>>>>>> endpoint


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
<<<<<<< HEAD
    web = commands.add_parser(
        "web",
        help="point in a browser",
        description="Serves a page in which you point at things in pictures and see the hits, and the JSON API behind "
        "it, which /api describes. It listens on this machine only, unless you say otherwise.",
    )
    add_milvus_flags(web)
    add_encoder_flags(web)
    web.add_argument(
        "--images",
        metavar="ROOT|URL",
        help="where the pictures are: a folder that the ids are relative to, or a URL with {id} in it (default: where "
        "ingest found them)",
    )
    add_listening_flags(web)
    web.set_defaults(run=_web)


def add_listening_flags(command: argparse.ArgumentParser) -> None:
    """Where the page is served, and to whom."""
    group = command.add_argument_group("who can reach it")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    group.add_argument("--port", type=int, default=DEFAULT_PORT, help="TCP port; 0: a free one (default: %(default)s)")
    group.add_argument("--token-file", default="", metavar="FILE", help="who calls must know one of its lines")
    group.add_argument("--no-auth", action="store_true", help="serve other machines without a token")
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which this server may be called, beside localhost and addresses",
    )
    group.add_argument("--tls-cert", default="", metavar="PEM", help="certificate chain, for https")
    group.add_argument("--tls-key", default="", metavar="PEM", help="its key")
    group.add_argument("--open", action="store_true", help="open the page in a browser")


def _web(options: argparse.Namespace) -> int:
    if options.encoder and options.model:
        raise PhsError("--encoder and --model exclude each other: a running server has its model already")
    if is_missing(options.milvus):
        raise CollectionError(
            f"no Milvus Lite database at {shown(options.milvus)}; ingest makes one, or check --milvus"
        )
    return serve_page(options)


def serve_page(options: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM; returns the exit status.

    Args:
        options: the flags of `add_milvus_flags`, `add_encoder_flags` and `add_listening_flags`, and `images`.
    """
    try:
        from phs_milvus.milvus.connection import connect
        from phs_milvus.web.api.service import Service
        from phs_milvus.web.backend import Backend
        from phs_milvus.web.renditions import Renditions
        from phs_milvus.web.serving import WebServer
        from phs_milvus.web.settings import WebSettings
        from phs_milvus.web.site import make_site
        from phs_milvus.web.stored import StoredPictures
    except ImportError as error:
        raise PhsError(EXTRA.format(error)) from error
    settings = WebSettings(
        host=options.host,
        port=options.port,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
        token_file=options.token_file,
        no_auth=options.no_auth,
        allowed_hosts=tuple(options.allowed_host),
    )
    stored = StoredPictures(options.images)
    with contextlib.ExitStack() as stack:
        backend = Backend(
            _opener(options, stack),
            lambda: connect(options.milvus, options.token),
            options.collection,
            probe=_probe(options.milvus),
            say=lambda line: print(f"phs-milvus: {line}", file=sys.stderr),
        )
        renditions = stack.enter_context(Renditions())
        service = Service(backend, stored, renditions, _places(options), login=bool(options.token_file))
        server = WebServer(make_site(service, settings), settings)
        stack.enter_context(backend)
        server.run(lambda url: _ready(url, options))
    return 0


def _opener(options: argparse.Namespace, stack: contextlib.ExitStack) -> Callable[[], Any]:
    """What opens the encoder: a new client each time, of a server that is started once."""
    from phs_milvus.client.encoder import Encoder

    own: list[Any] = []

    def opened() -> Any:
        if address_of(options):
            encoder = named_encoder(options)
        else:
            if not own:
                own.append(stack.enter_context(own_server(options, many=True)))
            encoder = Encoder(own[0].address)
        try:
            encoder.fetch_info()
        except PhsError:
            encoder.close()
            raise
        return encoder

    return opened


def _probe(uri: str) -> Callable[[], None]:
    """Whether a Milvus server's port answers, which takes a moment where pymilvus would wait for minutes."""
    from urllib.parse import urlsplit

    from phs_milvus.contract.proxies import proxy_note

    parts = urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or proxy_note(host):
        return lambda: None
    return lambda: _knock(uri, host, parts.port or (443 if parts.scheme == "https" else 80))


def _knock(uri: str, host: str, port: int) -> None:
    import socket

    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        raise CollectionError(f"Milvus at {shown(uri)} does not answer: {error.strerror or 'timed out'}") from None


def _places(options: argparse.Namespace) -> dict[str, str]:
    """What commands name to reach the same."""
    named = address_of(options)
    program = "phs-milvus" if shutil.which("phs-milvus") else sys.argv[0]
    places = {"program": program, "milvus": shown(options.milvus), "collection": options.collection}
    places |= {"encoder": shown(named)} if named else {"model": options.model or os.environ.get("PHS_MODEL", "")}
    return places | ({"images": shown(options.images)} if options.images else {})


def _ready(url: str, options: argparse.Namespace) -> None:
    login = "; log in with a token of the file" if options.token_file else ""
    print(f"The page is at {url}{login}. Ctrl-C ends it.", file=sys.stderr, flush=True)
    if options.open:
        import webbrowser

        webbrowser.open(url)
=======
    endpoint = commands.add_parser(
        "rerank-endpoint",
        help="rerank inside Milvus's own search",
        description="Serves POST /rerank, by which Milvus 2.6 and Milvus Lite 3.2 rerank by stored states in their own "
        "search. FocusedSearch.ranker makes what such a search needs.",
    )
    add_encoder_flags(endpoint)
    add_web_flags(endpoint, RERANK_PORT)
    endpoint.set_defaults(run=_serve_rerank)


def add_web_flags(command: argparse.ArgumentParser, port: int) -> None:
    """The flags of `web_settings`, with this default for --port."""
    group = command.add_argument_group("web server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    group.add_argument("--port", type=int, default=port, help="TCP port; 0 picks a free one (default: %(default)s)")
    group.add_argument("--token-file", default="", metavar="FILE", help="bearer tokens to ask for, one a line")
    group.add_argument("--no-auth", action="store_true", help="answer everybody who reaches --host")
    group.add_argument("--tls-cert", default="", metavar="FILE", help="PEM file of the server's certificate chain")
    group.add_argument("--tls-key", default="", metavar="FILE", help="PEM file of the certificate's key")
    group.add_argument(
        "--allowed-host",
        dest="allowed_hosts",
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which this server may be called, beside addresses and localhost; may be repeated",
    )
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="bytes of one request's body (default: %(default)s)",
    )


def web_settings(options: argparse.Namespace) -> Any:
    """What the flags of `add_web_flags` say, as phs_milvus.web.settings.WebSettings.

    Raises:
        InvalidInput: settings that cannot be used.
        PhsError: the web extra is not installed.
    """
    try:
        import orjson  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise PhsError(f"this command needs the web extra ({error}): pip install 'phs-milvus[web]'") from error
    from phs_milvus.web.settings import WebSettings

    names = ("host", "port", "token_file", "no_auth", "tls_cert", "tls_key", "max_body_bytes")
    return WebSettings(**{name: getattr(options, name) for name in names}, allowed_hosts=tuple(options.allowed_hosts))


def _serve_rerank(options: argparse.Namespace) -> int:
    settings = web_settings(options)
    from phs_milvus.web.access import Access
    from phs_milvus.web.app import make_app
    from phs_milvus.web.rerank import RerankEndpoint
    from phs_milvus.web.serving import WebServer

    with open_encoder(options) as encoder:
        app = make_app(RerankEndpoint(encoder).routes, Access(settings), settings)
        WebServer(app, settings).run(lambda url: print(f"ready: {url}/rerank", flush=True))
    return 0
>>>>>>> endpoint
