"""Opens and closes connections to Milvus, and turns its errors into CollectionError.

The only module that imports pymilvus.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import grpc
from pymilvus import DataType, MilvusClient, MilvusException

from phs_milvus.contract.errors import CollectionError
from phs_milvus.milvus.lite import set_aside_stored_logs

# Every failed call is raised with its message; these two also print each with a traceback.
for _name in ("pymilvus.decorators", "milvus_lite.server_manager"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

__all__ = ["DataType", "MilvusClient", "close", "connect", "is_lite", "message_of", "translated_errors"]

# pymilvus pings every 10 s, and Milvus Lite's server takes that for abuse when a call runs long.
_LITE_OPTIONS = {"grpc.keepalive_time_ms": 600_000}

_FAILURES = (MilvusException, grpc.RpcError)
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
        try:
            return MilvusClient(uri, token=token, timeout=timeout, **kwargs)
        except _FAILURES as error:
            raise CollectionError(
                f"no Milvus at {uri}: {message_of(error)}; check that the server runs and the token is "
                'right, or pass a path ending in ".db" to use Milvus Lite'
            ) from error
    if not uri.endswith(".db"):
        raise CollectionError(f'{uri!r} is neither a path ending in ".db" nor an http(s) address')
    path = Path(uri).expanduser().absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        set_aside_stored_logs(path)
        client = MilvusClient(str(path), **{"grpc_options": _LITE_OPTIONS, **kwargs})
    except (OSError, *_FAILURES) as error:
        raise CollectionError(f"cannot open Milvus Lite at {path}: {_why_lite_fails(path, error)}") from error
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
        return str(cause)
    return message_of(error)


def is_lite(client: MilvusClient) -> bool:
    """Whether this is Milvus Lite 3; a server embedded in Python calls itself v2.x-lite."""
    with translated_errors("cannot reach Milvus"):
        return "milvus_lite" in client.get_server_version()


def message_of(error: BaseException) -> str:
    """The message of an error of Milvus or gRPC, in one line."""
    details = error.details() if isinstance(error, grpc.RpcError) else getattr(error, "message", None)
    return " ".join(str(details or error).split())


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Raises whatever pymilvus raises as CollectionError("<doing>: <message>")."""
    try:
        yield
    except _FAILURES as error:
        raise CollectionError(f"{doing}: {message_of(error)}") from error
