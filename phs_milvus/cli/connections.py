"""Opens what most commands need: the embedding server and Milvus."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import CollectionError, PhsError, shown

DEFAULT_MILVUS = "./phs_milvus.db"
DEFAULT_COLLECTION = "images"

_NETWORK_SETTINGS = ("host", "tls_cert", "tls_key", "tls_client_ca", "token_file", "metrics_port")
_ENCODER_HELP = """a running phs-server; several, separated by commas, are used in turn; without one a server is started
here for this command [PHS_ENCODER]. TLS: PHS_ENCODER_TLS=1 or PHS_ENCODER_CA, PHS_ENCODER_CERT, PHS_ENCODER_KEY name
PEM files. Token: PHS_ENCODER_TOKEN_FILE"""

# In one line, which a terminal shows whole even where Ctrl-C comes at once.
_LOADING = (
    "loading {model} for this command alone; to load it once for all: "
    "phs-server --model {quoted} & export PHS_ENCODER=127.0.0.1:50051"
)


def add_encoder_flags(command: argparse.ArgumentParser, default: str = "facebook/dinov2-base") -> None:
    """--encoder and --model.

    Args:
        default: the model that the help names as the default.
    """
    group = command.add_argument_group("embedding server")
    group.add_argument(
        "--encoder",
        metavar="HOST:PORT",
        help=_ENCODER_HELP,
    )
    group.add_argument(
        "--model",
        metavar="ID",
        help=f"model for a server started here: a Hugging Face id or a directory (default: {default}) [PHS_MODEL]",
    )


def add_milvus_flags(command: argparse.ArgumentParser) -> Any:
    """Those of `add_milvus_address_flags`, and --collection; returns their group."""
    group = add_milvus_address_flags(command)
    group.add_argument("--collection", default=DEFAULT_COLLECTION, help="(default: %(default)s)")
    return group


def add_milvus_address_flags(command: argparse.ArgumentParser) -> Any:
    """--milvus, --token, --db-name and --timeout; returns their group."""
    group = command.add_argument_group("Milvus")
    group.add_argument(
        "--milvus",
        metavar="URI",
        type=lambda uri: uri.rstrip("/"),  # shells complete a Lite database, which is a folder, with a slash
        default=os.environ.get("PHS_MILVUS", DEFAULT_MILVUS),
        # Not what PHS_MILVUS says: a password may be in it.
        help="a Milvus Lite path ending in .db, or http://host:19530, or http://host:19530/database (default: "
        f"{DEFAULT_MILVUS}) [PHS_MILVUS]",
    )
    group.add_argument(
        "--token",
        default=os.environ.get("PHS_MILVUS_TOKEN", ""),
        help="token of the Milvus server [PHS_MILVUS_TOKEN]",
    )
    group.add_argument(
        "--db-name",
        metavar="NAME",
        default=os.environ.get("PHS_MILVUS_DB", ""),
        help="database in Milvus, which must exist (default: that of the URI, else Milvus' own) [PHS_MILVUS_DB]",
    )
    group.add_argument(
        "--timeout",
        type=seconds_of,
        metavar="S",
        help="seconds to wait for Milvus: to be connected (default: 10), and for each search (default: 30)",
    )
    return group


def seconds_of(text: str) -> float:
    """A number of seconds above 0, for argparse."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def address_of(options: argparse.Namespace) -> str | None:
    """The running server to use: --encoder, or PHS_ENCODER unless --model asks for a server of its own."""
    return options.encoder or (None if options.model else os.environ.get("PHS_ENCODER"))


@contextlib.contextmanager
def open_encoder(options: argparse.Namespace, *, many: bool = False) -> Iterator[Any]:
    """The embedding server of `address_of`, or one that is started here and ends with this command.

    Args:
        many: the command encodes many pictures, so that a server started here is worth a warm-up of whole batches.

    Raises:
        PhsError: --encoder and --model are both given, the server does not answer, or the model cannot be served here.
    """
    from phs_milvus.client.encoder import Encoder

    if options.encoder and options.model:
        raise PhsError("--encoder and --model exclude each other: a running server has its model already")
    if address_of(options):
        with named_encoder(options) as encoder:
            encoder.info  # noqa: B018  fails here, before any work, if the server is not there
            yield encoder
        return
    with own_server(options, many=many) as server, Encoder(server.address) as encoder:
        yield encoder


def named_encoder(options: argparse.Namespace) -> Any:
    """A client of the server that `address_of` names; nothing is asked of it yet."""
    from phs_milvus.client import environment
    from phs_milvus.client.encoder import Encoder

    addresses = (address_of(options) or "").split(",")
    return Encoder(addresses if len(addresses) > 1 else addresses[0], tls=environment.tls(), token=environment.token())


@contextlib.contextmanager
def own_server(options: argparse.Namespace, *, many: bool = False) -> Iterator[Any]:
    """A server of --model on a free port, for this command alone; raises as `open_encoder`."""
    app = server_package()
    from phs_server.config import Settings, parse

    settings = parse(["--model", options.model] if options.model else [])
    # On a port of its own and for this command alone, so the network settings in the environment do not apply.
    private = {name: getattr(Settings(), name) for name in _NETWORK_SETTINGS}
    settings = replace(settings, **private, port=0)
    if not many and settings.cpu_kernels == "auto":
        # Preparing weights for faster kernels takes longer than a few pictures do.
        settings = replace(settings, cpu_kernels="torch")
    print(_LOADING.format(model=shown(settings.model), quoted=shlex.quote(settings.model)), file=sys.stderr)
    with app.ServerThread(settings, brief=not many) as server:
        yield server


def server_package() -> Any:
    """phs_server.app, which needs torch; imported only by commands that run a model here."""
    try:
        from phs_server import app
    except ImportError as error:
        raise PhsError(
            f"running a model here needs the server extra ({error}): pip install 'phs-milvus[server]', "
            "or pass --encoder HOST:PORT of a running phs-server"
        ) from error
    return app


def is_missing(uri: str) -> bool:
    """Whether `uri` is a Milvus Lite database that does not exist yet."""
    try:
        return uri.endswith(".db") and "://" not in uri and not Path(uri).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # `connect` says why
        return False


@contextlib.contextmanager
def open_milvus(options: argparse.Namespace, *, create: bool = False) -> Iterator[Any]:
    """The Milvus of --milvus.

    Args:
        create: whether to create a Milvus Lite database that does not exist; for commands that only read, a missing
            one is a mistyped path.

    Raises:
        CollectionError: it does not exist, or cannot be opened.
    """
    from phs_milvus.milvus.connection import close, connect

    if not create and is_missing(options.milvus):
        raise CollectionError(
            f"no Milvus Lite database at {shown(options.milvus)}; ingest makes one, or check --milvus"
        )
    database = {"db_name": options.db_name} if getattr(options, "db_name", "") else {}
    client = connect(options.milvus, options.token, timeout=getattr(options, "timeout", None) or 10.0, **database)
    try:
        yield client
    finally:
        close(client)
