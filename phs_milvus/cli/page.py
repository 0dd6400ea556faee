"""`phs-milvus web`: the page to point in."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phs_milvus.cli.connections import (
    add_encoder_flags,
    add_milvus_flags,
    address_of,
    is_missing,
    named_encoder,
    own_server,
)
from phs_milvus.cli.listening import add_listening_flags, web_settings
from phs_milvus.contract.errors import CollectionError, MilvusUnavailable, PhsError, shown

DEFAULT_PORT = 8765


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    web = commands.add_parser(
        "web",
        help="point in a browser",
        description="Serves a page in which you point at things in pictures and see the hits, and the JSON API behind "
        "it, which /api describes. It listens on this machine only, unless you say otherwise.",
    )
    _add_flags(web)
    web.set_defaults(run=_web)


def _add_flags(web: argparse.ArgumentParser) -> None:
    add_milvus_flags(web)
    add_encoder_flags(web)
    web.add_argument(
        "--images",
        metavar="ROOT|URL",
        help="where the pictures are: a folder that the ids are relative to, or a URL with {id} in it (default: where "
        "ingest found them)",
    )
    add_listening_flags(web, DEFAULT_PORT)
    web.add_argument("--open", action="store_true", help="open the page in a browser")


def _web(options: argparse.Namespace) -> int:
    if options.encoder and options.model:
        raise PhsError("--encoder and --model exclude each other: a running server has its model already")
    if is_missing(options.milvus):
        raise CollectionError(
            f"no Milvus Lite database at {shown(options.milvus)}; ingest makes one, or check --milvus"
        )
    if (options.model or "").startswith((".", "/")) and not Path(options.model).is_dir():
        # Anything else that is wrong with a model is said on the page and tried again: a hub may be away.
        raise PhsError(f"no directory {shown(options.model)}; check --model")
    return _serve(options)


def serve_page(flags: Sequence[str]) -> int:
    """What `phs-milvus web` with these flags does; returns the exit status."""
    parser = argparse.ArgumentParser()
    _add_flags(parser)
    return _web(parser.parse_args(flags))


def _serve(options: argparse.Namespace) -> int:
    settings = web_settings(options)
    from phs_milvus.milvus.connection import connect
    from phs_milvus.web.api.service import Service
    from phs_milvus.web.backend import Backend
    from phs_milvus.web.renditions import Renditions
    from phs_milvus.web.serving import WebServer
    from phs_milvus.web.site import make_site
    from phs_milvus.web.stored import StoredPictures

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
        raise MilvusUnavailable(f"Milvus at {shown(uri)} does not answer: {error.strerror or 'timed out'}") from None


def _places(options: argparse.Namespace) -> dict[str, str]:
    """What commands name to reach the same."""
    from phs_milvus.demo.page import program

    named = address_of(options)
    places = {"program": program(), "milvus": shown(options.milvus), "collection": options.collection}
    places |= {"encoder": shown(named)} if named else {"model": options.model or os.environ.get("PHS_MODEL", "")}
    return places | ({"images": shown(options.images)} if options.images else {})


def _ready(url: str, options: argparse.Namespace) -> None:
    login = "; log in with a token of the file" if options.token_file else ""
    print(f"The page is at {url}{login}. Ctrl-C ends it.", file=sys.stderr, flush=True)
    if options.open:
        import webbrowser

        webbrowser.open(url)
