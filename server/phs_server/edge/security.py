"""TLS credentials and bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
from collections.abc import Iterable
from pathlib import Path

import grpc

from phs_milvus.contract.errors import InvalidInput, TokenRefused
from phs_milvus.contract.files import read_small_file
from phs_milvus.contract.tokens import read_tokens
from phs_server.config import Settings

log = logging.getLogger(__name__)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS as the settings say, mutual where a client CA is given; None for plaintext.

    Raises:
        InvalidInput: half of a pair, or a file that cannot be read or used.
    """
    if not settings.tls_cert and not settings.tls_key:
        if settings.tls_client_ca:
            raise InvalidInput("needs --tls-cert and --tls-key beside it", "tls_client_ca")
        return None
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if not getattr(settings, name):
            raise InvalidInput(f"is missing, but --{other.replace('_', '-')} is given", name)
    certificate, key = _pem(settings, "tls_cert"), _pem(settings, "tls_key")
    client_ca = _pem(settings, "tls_client_ca") if settings.tls_client_ca else None
    _check_pair(settings)
    return grpc.ssl_server_credentials([(key, certificate)], client_ca, require_client_auth=client_ca is not None)


def _pem(settings: Settings, name: str) -> bytes:
    path = getattr(settings, name)
    data = read_small_file(path, name)
    if b"-----BEGIN " not in data:
        raise InvalidInput(f"{path} is not a PEM file", name)
    return data


def _check_pair(settings: Settings) -> None:
    """gRPC takes a certificate and a key of anything, and then fails to open the port without a reason."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password, so that OpenSSL asks for none on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise InvalidInput(
            f"{settings.tls_key} is not the unencrypted key of the certificate in {settings.tls_cert} ({reason})",
            "tls_key",
        ) from None
    if settings.tls_client_ca:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except ssl.SSLError as error:
            reason = error.reason or str(error)
            raise InvalidInput(f"{settings.tls_client_ca} holds no certificate ({reason})", "tls_client_ca") from None


class Tokens:
    """The tokens that the server knows, out of a file.

    The file is read again when it changes. One that is gone, or cannot be used, leaves the last good tokens in force,
    with an error in the log.

    Raises:
        InvalidInput: the file cannot be used; see `read_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._digests = self._read()

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """What stands for the token of a call.

        Raises:
            TokenRefused: it carries none, or one that is not known.
        """
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            self.reload()
        scheme, _, token = str(dict(metadata).get("authorization", "")).partition(" ")
        # Digests have one length, and every one is compared: the time taken tells nothing about the tokens.
        given = _digest(token.strip())
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests) > 0
        if scheme.lower() != "bearer" or not known:
            raise TokenRefused("this server wants a token it knows, as 'authorization: Bearer TOKEN'")
        return given.hex()

    def reload(self) -> None:
        """Reads the file again."""
        try:
            self._digests = self._read()
            log.info("read %d tokens from %s", len(self._digests), self._path)
        except InvalidInput as error:
            log.error("keeping the tokens read before: %s", error)

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> list[bytes]:
        return [_digest(token) for token in read_tokens(self._path, "token_file")]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
