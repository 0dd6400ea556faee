"""`phs-milvus rerank-endpoint`, and the flags of every command that speaks HTTP."""

from __future__ import annotations

import argparse
from typing import Any

from phs_milvus.cli.connections import add_encoder_flags, open_encoder
from phs_milvus.contract.errors import PhsError

RERANK_PORT = 8766


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
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
