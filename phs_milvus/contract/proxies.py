"""HTTP proxies on the way of gRPC: company networks and Docker builds set one for every program, in the environment.

gRPC takes all its connections through it, also those to this machine, where no proxy can lead back to.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from phs_milvus.contract.errors import shown

# Those that gRPC reads, in its order; it knows neither all_proxy nor upper case.
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def channel_options(target: str) -> dict[str, int]:
    """gRPC channel arguments for a target such as "host:port", "[::1]:50051" or "ipv4:127.0.0.1:1,127.0.0.1:2"."""
    return {"grpc.enable_http_proxy": 0} if _goes_without(target) else {}


def proxy_note(target: str) -> str:
    """What an error about a server that does not answer should add: the proxy that is in between, "" without one."""
    variable = _variable()
    if variable is None or _goes_without(target):
        return ""
    exceptions = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    if proxy_bypass_environment(_host_of(target), {"no": exceptions}):
        return ""
    return f" through the proxy {variable}={shown(os.environ[variable])}, which no_proxy={_host_of(target)} would avoid"


def _variable() -> str | None:
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def _goes_without(target: str) -> bool:
    # Of several addresses gRPC would ask the proxy for one host whose name is the whole list.
    return "," in target or _is_this_machine(_host_of(target))


def _host_of(target: str) -> str:
    text = target.rpartition("/")[2]
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        text = text.removeprefix(scheme)
    host, colon, port = text.rpartition(":")
    return (host if colon and port.isdigit() else text).strip("[]").lower()


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return _is_loopback(host)
    except ValueError:  # a name, which is worth looking up only where it matters
        if _variable() is None:
            return False
    try:
        return all(_is_loopback(str(entry[4][0])) for entry in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified
