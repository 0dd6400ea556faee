"""Who may call: the server by its own name, from its own pages, and with a token where one is asked for."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from phs_milvus.contract.errors import TokenRefused, shown
from phs_milvus.web.problems import Problem
from phs_milvus.web.settings import WebSettings

# One customer of a provider has at least this much of IPv6 to itself.
_IPV6_PREFIX = 64


def authorization_header(connection: HTTPConnection) -> str:
    """The credentials of a request, as in the header Authorization."""
    return connection.headers.get("authorization", "")


class Access:
    """The rules of one server.

    Args:
        settings: the tokens and names of the server.
        credentials: where a request's credentials are, as "Bearer TOKEN", "" for none; by default in its header, which
            is the only place that no other site can make a browser fill.
    """

    def __init__(
        self, settings: WebSettings, credentials: Callable[[HTTPConnection], str] = authorization_header
    ) -> None:
        self._tokens = settings.tokens
        self._names = settings.names
        self._credentials = credentials

    def check_origin(self, connection: HTTPConnection) -> None:
        """Refuses what a page of another site made a browser send.

        A name that an attacker points at this machine (DNS rebinding) arrives as the Host; addresses cannot be
        pointed elsewhere.

        Raises:
            Problem: 421 for a Host that is not this server's, 403 for another site's request.
        """
        host = _only(connection, "host")
        name = _host_name(host)
        if not (_is_address(name) or name in self._names or name.endswith(".localhost")):
            raise Problem(
                421, f"this server is not {shown(name)!r}; if it is, start it with --allowed-host {shown(name)}"
            )
        origin = connection.headers.get("origin")
        if origin is not None and _netloc(origin).lower() != host.lower():
            raise Problem(403, f"requests from pages of {shown(origin)} are not answered")
        site, mode = connection.headers.get("sec-fetch-site"), connection.headers.get("sec-fetch-mode")
        if site in ("cross-site", "same-site") and mode != "navigate":
            raise Problem(403, "requests from pages of other sites are not answered")

    def identify(self, connection: HTTPConnection) -> str:
        """What stands for a request's token; "" where this server asks for none.

        Raises:
            TokenRefused: it has none, or one that is not known.
        """
        return self._tokens.identify(self._credentials(connection)) if self._tokens else ""

    def knows(self, token: str) -> bool:
        """Whether a token is one of this server's; for a login page."""
        try:
            return self._tokens is None or bool(self._tokens.identify(f"Bearer {token}"))
        except TokenRefused:
            return False


def address_of(connection: HTTPConnection) -> str:
    """Whom a request without a token counts for: its IPv4 address or IPv6 /64 network."""
    if connection.client is None:
        return ""
    try:
        address = ipaddress.ip_address(connection.client.host.partition("%")[0])
    except ValueError:
        return connection.client.host
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))


def _only(connection: HTTPConnection, header: str) -> str:
    values = connection.headers.getlist(header)
    if len(values) != 1 or not values[0]:
        raise Problem(400, f"{len(values)} of this header; send one", header)
    return values[0]


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        raise Problem(400, f"{shown(host)!r} is no host", "host") from None


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # no browser sends such a one
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
