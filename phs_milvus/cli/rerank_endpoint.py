"""`phs-milvus rerank-endpoint`: reranks inside Milvus's own search."""

from __future__ import annotations

import argparse
from typing import Any

from phs_milvus.cli.connections import add_encoder_flags, open_encoder
from phs_milvus.cli.listening import add_listening_flags, web_settings

DEFAULT_PORT = 8766


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    endpoint = commands.add_parser(
        "rerank-endpoint",
        help="rerank inside Milvus's own search",
        description="Serves POST /rerank, by which Milvus 2.6 and Milvus Lite 3.2 rerank by stored states in their own "
        "search. FocusedSearch.ranker makes what such a search needs.",
    )
    add_encoder_flags(endpoint)
    add_listening_flags(endpoint, DEFAULT_PORT)
    endpoint.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    settings = web_settings(options)
    from phs_milvus.web.access import Access
    from phs_milvus.web.app import make_app
    from phs_milvus.web.rerank import RerankEndpoint
    from phs_milvus.web.serving import WebServer

    with open_encoder(options) as encoder:
        app = make_app(RerankEndpoint(encoder).routes, Access(settings), settings)
        WebServer(app, settings).run(lambda url: print(f"ready: {url}/rerank", flush=True))
    return 0
