"""Whom a call counts for when the server is full: a network address, and a token where the server asks for one."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote

# One customer of a provider has at least this much of IPv6 to itself.
_IPV6_PREFIX = 64


@dataclass(frozen=True)
class Caller:
    """The other side of one call.

    Attributes:
        peer: its connection, as gRPC names it, for example "ipv4:10.0.0.7:40312".
        address: its IPv4 address or IPv6 /64 network, without the port.
        token: what stands for its token; empty where the server asks for none.
        certificate: what stands for its client certificate; empty where the server asks for none.
    """

    peer: str
    address: str
    token: str = ""
    certificate: str = ""

    @property
    def identity(self) -> str:
        """Whose pictures it may ask for again; the same for all callers where the server cannot tell them apart."""
        known = (("token", self.token), ("certificate", self.certificate))
        return " ".join(f"{kind} {value}" for kind, value in known if value)

    @property
    def is_private(self) -> bool:
        """Whether it called on the socket of `phs_server.edge.supervisor`."""
        return self.peer.startswith("unix")


def caller_of(peer: str, token: str = "", certificate: bytes = b"") -> Caller:
    """The caller on a connection; certificate: in PEM, empty for none."""
    return Caller(peer, _network(peer), token, hashlib.sha256(certificate).hexdigest() if certificate else "")


def endpoint_of(peer: str) -> tuple[str, int] | None:
    """(address, port) of a TCP peer as gRPC names it; None for any other."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    return (plain_address(host), int(port)) if kind in ("ipv4", "ipv6") and port.isdigit() else None


def plain_address(host: str) -> str:
    """One spelling for each address: without brackets, zone, or IPv6's way of writing IPv4."""
    address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


@lru_cache(4096)
def _network(peer: str) -> str:
    endpoint = endpoint_of(peer)
    if endpoint is None:
        return peer
    address = ipaddress.ip_address(endpoint[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
