"""Opens and closes connections to Milvus, and turns its errors into CollectionError.

The only module that imports pymilvus, with answers.py.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import grpc
from pymilvus import AnnSearchRequest, DataType, FieldSchema, Function, FunctionType, MilvusClient, MilvusException
from pymilvus.client.types import LoadState

from phs_milvus.contract.errors import CollectionError, InvalidInput, MilvusUnavailable, PhsError, reason_of, shown
from phs_milvus.contract.proxies import channel_options, proxy_note
from phs_milvus.milvus.lite import set_aside_stored_logs

# Every failed call is raised with its message; these also print each with a traceback. pymilvus gives its own loggers
# a level when it is imported; whoever sets another one, before or after, has it.
for _name, _own in (("pymilvus", "WARNING"), ("pymilvus.milvus_client", "INFO"), ("milvus_lite", "NOTSET")):
    if logging.getLogger(_name).level in (logging.NOTSET, getattr(logging, _own)):
        logging.getLogger(_name).setLevel(logging.CRITICAL)


def _is_not_of_lite(record: logging.LogRecord) -> bool:
    """Milvus Lite's server runs in this process: gRPC prints what it raises, before pymilvus raises it again."""
    trace = record.exc_info[2] if record.exc_info else None
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__")).startswith(("milvus_lite", "pymilvus")):
            return False
        trace = trace.tb_next
    return True


logging.getLogger("grpc._server").addFilter(_is_not_of_lite)

__all__ = [
    "AnnSearchRequest",
    "DataType",
    "FieldSchema",
    "Function",
    "FunctionType",
    "LoadState",
    "MilvusClient",
    "check_server",
    "close",
    "connect",
    "is_lite",
    "is_unavailable",
    "message_of",
    "translated_errors",
]

# pymilvus reaches Milvus Lite through a port of this machine, where no proxy leads. It pings every 10 s, which Lite's
# server takes for abuse when a call runs long.
_LITE_OPTIONS = {"grpc.keepalive_time_ms": 600_000, **channel_options("127.0.0.1")}
_SERVICE = "milvus.proto.milvus.MilvusService"
# Calls that move rows have a timeout of their own, or of their caller's; all others are a matter of milliseconds.
_LONG_CALLS = ("Search", "HybridSearch", "Query", "Insert", "Upsert", "Delete", "Flush", "Import", "LoadCollection")
_SERVER_OPTIONS = {
    # pymilvus pings every 10 s; gRPC would wait a minute for the answer.
    "grpc.http2.ping_timeout_ms": 5_000,
    # Of a server that is away gRPC asks ever more rarely, in the end every two minutes.
    "grpc.max_reconnect_backoff_ms": 2_000,
    "grpc.service_config": json.dumps(
        {
            "methodConfig": [
                {"name": [{}], "timeout": "20s"},
                {"name": [{"service": _SERVICE, "method": method} for method in _LONG_CALLS]},
            ]
        }
    ),
}
# pymilvus waits for as long as its first connection might take, whenever it has lost the server.
_RECONNECT_S = 3.0
_MESSAGE_CHARACTERS = 500

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# Milvus' own codes while it starts, or has lost a node: not ready, unavailable, collection not fully loaded, replica,
# channel or node not available.
_NOT_READY = frozenset({2, 103, 401, 500, 501, 503, *range(901, 908)})

_lite_paths: WeakKeyDictionary[MilvusClient, str] = WeakKeyDictionary()


def connect(uri: str, token: str = "", *, timeout: float = 10.0, **kwargs: Any) -> MilvusClient:
    """Opens Milvus Lite or connects to a Milvus server.

    Args:
        uri: a path ending in ".db" (Milvus Lite; made if it does not exist), or http(s)://host:port, or
            http(s)://host:port/database.
        token: "user:password" or an API key.
        timeout: seconds to wait for a server.
        kwargs: passed on to MilvusClient, for example db_name: the database, in place of the URI's.

    Raises:
        MilvusUnavailable: no server answers in time.
        CollectionError: it denies access or has no such database, or another process has the Lite database open.
    """
    client = _connect(uri, token, timeout, kwargs)
    try:
        _check_database(client, str(kwargs.get("db_name") or _database_in(uri)))
    except BaseException:
        close(client)
        raise
    return client


def _connect(uri: str, token: str, timeout: float, kwargs: dict[str, Any]) -> MilvusClient:
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
        options = {**channel_options(host), **_SERVER_OPTIONS, **kwargs.pop("grpc_options", {})}
        return _reached(uri, timeout, token=token, grpc_options=options, **kwargs)
    except Exception as error:
        reason = message_of(error)
        kind = MilvusUnavailable if is_unavailable(error) else CollectionError
        for secret in (token, token.partition(":")[2], urlsplit(uri).password if host else ""):
            if secret and len(secret) > 3:  # a shorter one would only mangle the text
                reason = reason.replace(secret, "***")
        # Without the cause, whose message may hold the password.
        raise kind(
            f"no Milvus at {shown(uri)}{proxy_note(host)}: {reason}; check that the server runs and the token is "
            'right, or pass a path ending in ".db" to use Milvus Lite'
        ) from None


def _reached(uri: str, timeout: float, **options: Any) -> MilvusClient:
    """A client of a server that answered within `timeout` seconds."""
    until = time.monotonic() + timeout
    while True:
        left = until - time.monotonic()
        try:
            return MilvusClient(uri, timeout=max(0.1, min(_RECONNECT_S, left)), **options)
        except Exception as error:
            if left <= _RECONNECT_S or not is_unavailable(error):
                raise


def _database_in(uri: str) -> str:
    return urlsplit(uri).path.strip("/").partition("/")[0] if uri.startswith(("http://", "https://")) else ""


def _check_database(client: MilvusClient, name: str) -> None:
    """Raises CollectionError where there is no such database: some servers say only that it has no collections."""
    if name in ("", "default"):
        return
    try:
        there = client.list_databases()
    except MilvusException:  # not every user may list them
        return
    if name not in there:
        raise CollectionError(
            f"there is no database {shown(name)!r}; there are: {shown(', '.join(sorted(there)))}; "
            "MilvusClient.create_database makes one"
        )


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
    return "milvus_lite" in _version_text(client)


def check_server(client: MilvusClient, since: tuple[int, int], what: str, field: str) -> None:
    """Raises InvalidInput where a server is older than what is asked of it, and would leave it out in silence.

    Milvus Lite, and a service that does not say which Milvus it is, pass: they answer themselves.

    Args:
        since: the first version that can, as (major, minor).
        what: what is asked, for the message.
        field: the argument that asks.
    """
    text = _version_text(client)
    found = re.match(r"v?(\d+)\.(\d+)", text)
    if found and (int(found[1]), int(found[2])) < since:
        needed = ".".join(map(str, since))
        raise InvalidInput(f"{what} needs Milvus {needed} or later; this server is {shown(text)}", field)


def _version_text(client: MilvusClient) -> str:
    with translated_errors("cannot reach Milvus"):
        return str(client.get_server_version())


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of pymilvus says that Milvus does not answer, or is not ready: the same call may work later."""
    calls = [cause.code() for cause in _causes(error) if isinstance(cause, grpc.RpcError)]
    if calls:
        return any(code in _AWAY for code in calls)
    return isinstance(error, MilvusException) and (error.code in _NOT_READY or "not ready" in str(error.message))


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the last first."""
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        cause = following.__cause__
        following = following.__context__ if cause is None or cause is following else cause
    return found


def message_of(error: BaseException) -> str:
    """The message of an error of Milvus or gRPC, in one line: that of the first cause that gRPC knows."""
    calls = [cause for cause in _causes(error) if isinstance(cause, grpc.RpcError)]
    if calls and calls[-1].code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    details = calls[-1].details() if calls else getattr(error, "message", None)
    return shown(details or reason_of(error), _MESSAGE_CHARACTERS)


@contextmanager
def translated_errors(doing: str) -> Iterator[None]:
    """Raises whatever pymilvus raises as CollectionError("<doing>: <message>").

    Raises:
        MilvusUnavailable: it does not answer, or is not ready; the message says what to do.
    """
    try:
        yield
    except PhsError:
        raise
    except (MilvusException, grpc.RpcError, OSError, ValueError) as error:  # ValueError: a channel closed meanwhile
        if is_unavailable(error):
            raise MilvusUnavailable(
                f"{doing}: Milvus does not answer: {message_of(error)}; see that it runs, then do the same again"
            ) from error
        raise CollectionError(f"{doing}: {message_of(error)}") from error
