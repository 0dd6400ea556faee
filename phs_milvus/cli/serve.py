"""`phs-milvus serve`: runs the embedding server, like `phs-server`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from phs_milvus.cli.connections import server_package


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers, with the server's own flags where the server is installed."""
    serve = commands.add_parser(
        "serve",
        help="run the embedding server (the same as phs-server)",
        description="Runs the embedding server in the foreground. `phs-server --help` explains its flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    with contextlib.suppress(ImportError):
        from phs_server.config import add_flags

        add_flags(serve)
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    server_package()
    from phs_server.config import from_namespace
    from phs_server.process import run

    run(from_namespace(options))
