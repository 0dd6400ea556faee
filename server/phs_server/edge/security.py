"""TLS credentials and bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from phs_milvus.contract.errors import InvalidInput
from phs_server.config import Settings

log = logging.getLogger(__name__)

# Probes of an orchestrator carry no token, and health tells nothing but a status.
_EXEMPT = "/grpc.health.v1.Health/"


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS as the settings say, mutual where a client CA is given; None for plaintext.

    Raises:
        InvalidInput: half of a pair, or a file that cannot be read or is not PEM.
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
    return grpc.ssl_server_credentials([(key, certificate)], client_ca, require_client_auth=client_ca is not None)


def _pem(settings: Settings, name: str) -> bytes:
    path = Path(getattr(settings, name))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}", name) from None
    if b"-----BEGIN " not in data:
        raise InvalidInput(f"{path} is not a PEM file", name)
    return data


class Tokens(grpc.aio.ServerInterceptor):
    """Refuses calls without one of the tokens in a file; health checks need none.

    The file holds one token per line; empty lines and lines that start with # are skipped. It is read again when it
    changes. A file that is gone or holds no token leaves the last good tokens in force, with an error in the log.

    Raises:
        InvalidInput: the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._digests = self._read()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if details.method.startswith(_EXEMPT) or self._accepts(dict(details.invocation_metadata)):
            return await continuation(details)
        return _REFUSE

    def reload(self) -> None:
        """Reads the file again."""
        try:
            self._digests = self._read()
            log.info("read %d tokens from %s", len(self._digests), self._path)
        except InvalidInput as error:
            log.error("keeping the tokens read before: %s", error)

    def _accepts(self, metadata: dict[str, str]) -> bool:
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            self.reload()
        scheme, _, token = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer":
            return False
        # Digests have one length, and every one is compared: the time taken tells nothing about the tokens.
        given = _digest(token.strip())
        return sum(hmac.compare_digest(given, known) for known in self._digests) > 0

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            return ()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> list[bytes]:
        try:
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot read {self._path}: {error}", "token_file") from None
        lines = (line.strip() for line in text.splitlines())
        digests = [_digest(line) for line in lines if line and not line.startswith("#")]
        if not digests:
            raise InvalidInput(f"{self._path} holds no token; write one per line", "token_file")
        return digests


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def _refuse(requests: object, context: grpc.aio.ServicerContext) -> None:
    context.set_code(grpc.StatusCode.UNAUTHENTICATED)
    context.set_details("this server wants a token it knows, as 'authorization: Bearer TOKEN'")


# Stream-stream is the one kind that answers any call without reading its message.
_REFUSE = grpc.stream_stream_rpc_method_handler(_refuse)
