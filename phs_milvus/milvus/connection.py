"""Opens and closes connections to Milvus, and turns its errors into CollectionError.

The only module that imports pymilvus.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import grpc
from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, MilvusException

from phs_milvus.contract.errors import CollectionError, PhsError, reason_of, shown
from phs_milvus.contract.proxies import channel_options, proxy_note
from phs_milvus.milvus.lite import set_aside_stored_logs

# Every failed call is raised with its message; these two also print each with a traceback.
for _name in ("pymilvus", "milvus_lite"):
    if logging.getLogger(_name).level == logging.NOTSET:
        logging.getLogger(_name).setLevel(logging.CRITICAL)
# As gRPC does where pymilvus asks Milvus Lite for what only servers have, and then goes on without it.
logging.getLogger("grpc._server").addFilter(lambda record: "Method not implemented" not in record.getMessage())

__all__ = [
    "AnnSearchRequest",
    "DataType",
    "Function",
    "FunctionType",
    "MilvusClient",
    "close",
    "connect",
    "is_lite",
    "message_of",
    "translated_errors",
]

# pymilvus reaches Milvus Lite through a port of this machine, where no proxy leads. It pings every 10 s, which Lite's
# server takes for abuse when a call runs long.
_LITE_OPTIONS = {"grpc.keepalive_time_ms": 600_000, **channel_options("127.0.0.1")}
_MESSAGE_CHARACTERS = 500

_lite_paths: WeakKeyDictionary[MilvusClient, str] = WeakKeyDictionary()


def connect(uri: str, token: str = "", *, timeout: float = 10.0, **kwargs: Any) -> MilvusClient:
    """Opens Milvus Lite or connects to a Milvus server.

    Args:
        uri: a path ending in ".db" (Milvus Lite; made if it does not exist), or http(s)://host:port.
        token: "user:password" or an API key.
        timeout: seconds to wait for a server.
        kwargs: passed on to MilvusClient, for example db_name.

    Raises:
        CollectionError: there is no server, it denies access, or another process has the Lite database open.
    """
    if uri.startswith(("http://", "https://")):
        return _connect_to_server(uri, token, timeout, kwargs)
    if uri.endswith(".db") and "://" not in uri:
        return _open_lite(uri, kwargs)
    raise CollectionError(f'{shown(uri)!r} is neither a path ending in ".db" nor an http(s) address')


def _connect_to_server(uri: str, token: str, timeout: float, kwargs: dict[str, Any]) -> MilvusClient:
    host = ""
    try:
        host, _ = urlsplit(uri).hostname or "", urlsplit(uri).port
        if not host:
            raise ValueError("there is no host in it")
        options = {**channel_options(host), **kwargs.pop("grpc_options", {})}
        return MilvusClient(uri, token=token, timeout=timeout, grpc_options=options, **kwargs)
    except Exception as error:
        reason = message_of(error)
        for secret in (token, token.partition(":")[2], urlsplit(uri).password if host else ""):
            if secret and len(secret) > 3:  # a shorter one would only mangle the text
                reason = reason.replace(secret, "***")
        # Without the cause, whose message may hold the password.
        raise CollectionError(
            f"no Milvus at {shown(uri)}{proxy_note(host)}: {reason}; check that the server runs and the token is "
            'right, or pass a path ending in ".db" to use Milvus Lite'
        ) from None


def _open_lite(uri: str, kwargs: dict[str, Any]) -> MilvusClient:
    try:
        path = Path(uri).expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CollectionError(f"cannot open Milvus Lite at {shown(uri)}: {reason_of(error)}") from error
    try:
        set_aside_stored_logs(path)
        client = MilvusClient(str(path), **{"grpc_options": _LITE_OPTIONS, **kwargs})
    except Exception as error:
        raise CollectionError(f"cannot open Milvus Lite at {shown(path)}: {_why_lite_fails(path, error)}") from error
    _lite_paths[client] = str(path)
    return client


def close(client: MilvusClient) -> None:
    """Closes a client, and frees the Milvus Lite database that `connect` opened for it."""
    path = _lite_paths.pop(client, None)
    if path is not None and path in _lite_paths.values():
        return  # another client uses it, with pymilvus 2.6 over the same connection
    client.close()
    if path is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(path)


def _why_lite_fails(path: Path, error: Exception) -> str:
    """Why a Lite database does not open. pymilvus hides the reason, so this opens the database again without it."""
    try:
        from milvus_lite.db import MilvusLite
        from milvus_lite.exceptions import DataDirLockedError
    except ImportError:
        return 'milvus-lite is not installed; run: pip install "phs-milvus[lite]"'
    try:
        MilvusLite(str(path)).close()
    except DataDirLockedError:
        return "another process has it open, and Milvus Lite takes one process at a time; end that process first"
    except FileExistsError:
        return "it is a file, perhaps of Milvus Lite 2; version 3 keeps a directory there, so pass another path"
    except Exception as cause:  # whatever it is, it is the reason
        return reason_of(cause)
    return message_of(error)


def is_lite(client: MilvusClient) -> bool:
    """Whether this is Milvus Lite 3; a server embedded in Python calls itself v2.x-lite."""
    with translated_errors("cannot reach Milvus"):
        return "milvus_lite" in client.get_server_version()


def message_of(error: BaseException) -> str:
    """The message of an error of Milvus or gRPC, in one line."""
    details = error.details() if isinstance(error, grpc.RpcError) else getattr(error, "message", None)
    return shown(details or reason_of(error), _MESSAGE_CHARACTERS)


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Raises whatever pymilvus raises as CollectionError("<doing>: <message>")."""
    try:
        yield
    except PhsError:
        raise
    except (MilvusException, grpc.RpcError, OSError, ValueError) as error:  # ValueError: a channel closed meanwhile
        raise CollectionError(f"{doing}: {message_of(error)}") from error
