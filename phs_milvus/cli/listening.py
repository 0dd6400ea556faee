"""The flags of every command that speaks HTTP, and what they say."""

from __future__ import annotations

import argparse
from typing import Any

from phs_milvus.contract.errors import PhsError


def add_listening_flags(command: argparse.ArgumentParser, port: int) -> None:
    """The flags of `web_settings`.

    Args:
        port: the default of --port.
    """
    group = command.add_argument_group("who can reach it")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    group.add_argument("--port", type=int, default=port, help="TCP port; 0: a free one (default: %(default)s)")
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
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=64 * 2**20,
        metavar="N",
        help="bytes that one request may have (default: %(default)s)",
    )


def web_settings(options: argparse.Namespace) -> Any:
    """What the flags say, as phs_milvus.web.settings.WebSettings.

    Raises:
        InvalidInput: settings that cannot be used.
        PhsError: the web extra is not installed.
    """
    try:
        from phs_milvus.web import rerank, serving  # noqa: F401  they need all of the extra
        from phs_milvus.web.settings import WebSettings
    except ImportError as error:
        raise PhsError(f"this command needs the web extra ({error}): pip install 'phs-milvus[web]'") from error
    names = ("host", "port", "token_file", "no_auth", "tls_cert", "tls_key", "max_body_bytes")
    return WebSettings(**{name: getattr(options, name) for name in names}, allowed_hosts=tuple(options.allowed_host))
