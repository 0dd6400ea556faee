"""TLS credentials."""

from __future__ import annotations

import ssl

import grpc

from phs_milvus.contract.certificates import read_pair, read_pem
from phs_milvus.contract.errors import InvalidInput
from phs_server.config import Settings


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS as the settings say, mutual where a client CA is given; None for plaintext.

    Raises:
        InvalidInput: half of a pair, or a file that cannot be read or used.
    """
    pair = read_pair(settings.tls_cert, settings.tls_key)
    if pair is None:
        if settings.tls_client_ca:
            raise InvalidInput("needs --tls-cert and --tls-key beside it", "tls_client_ca")
        return None
    client_ca = _client_ca(settings.tls_client_ca) if settings.tls_client_ca else None
    certificate, key = pair
    return grpc.ssl_server_credentials([(key, certificate)], client_ca, require_client_auth=client_ca is not None)


def _client_ca(path: str) -> bytes:
    data = read_pem(path, "tls_client_ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        raise InvalidInput(f"{path} holds no certificate ({reason})", "tls_client_ca") from None
    return data
