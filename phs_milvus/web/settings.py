"""How a web server listens, and whom it answers."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from phs_milvus.contract.certificates import read_pair
from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.contract.tokens import Tokens


@dataclass(frozen=True)
class WebSettings:
    """Settings of one web server.

    Attributes:
        host: address to listen on.
        port: TCP port; 0 picks a free one.
        tls_cert, tls_key: PEM files of the certificate chain and its key; "" for plain HTTP.
        token_file: bearer tokens, one a line, read again when it changes; "" where none is asked for.
        no_auth: whoever reaches the port may call, though it is not on loopback.
        allowed_hosts: names by which this server may be called, beside addresses and localhost.
        drain_seconds: what accepted requests get to finish after SIGTERM.
        max_body_bytes: of one request's body.

    Raises:
        InvalidInput: a port out of range, half of a TLS pair, a file that cannot be used, or an address that others
            reach without a token and without `no_auth`.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    tls_cert: str = ""
    tls_key: str = ""
    token_file: str = ""
    no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    drain_seconds: int = 10
    max_body_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InvalidInput(f"must be 0 to 65535, got {self.port}", "port")
        if self.max_body_bytes < 1:
            raise InvalidInput(f"must be at least 1, got {self.max_body_bytes}", "max_body_bytes")
        if self.token_file and self.no_auth:
            raise InvalidInput("--no-auth and --token-file exclude each other", "no_auth")
        if not (self.token_file or self.no_auth or _is_loopback(self.host)):
            raise InvalidInput(
                f"{shown(self.host)} can be reached by others; pass --token-file FILE, or --no-auth for everybody",
                "host",
            )
        read_pair(self.tls_cert, self.tls_key)

    @property
    def tokens(self) -> Tokens | None:
        """The tokens to ask for; None where none is.

        Raises:
            InvalidInput: the file cannot be used.
        """
        return Tokens(Path(self.token_file)) if self.token_file else None

    @property
    def names(self) -> frozenset[str]:
        """Host names that this server answers to, in lower case."""
        return frozenset(name.lower().rstrip(".") for name in ("localhost", self.host, *self.allowed_hosts))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
