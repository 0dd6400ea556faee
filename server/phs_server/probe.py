"""`python -m phs_server.probe`: asks a running server for its health, as containers do before they send it work.

It takes the server's own flags and environment variables, so that inside a container it finds the server by itself,
with TLS too. Exit status: 0 serving, 1 not serving or no answer, 2 wrong usage.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.files import read_small_file
from phs_server.config import Settings, from_namespace, make_parser

_NAMES = ("readiness", "liveness")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}
_Status = health_pb2.HealthCheckResponse.ServingStatus


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the status in one line; returns the exit status."""
    parser = make_parser(prog="python -m phs_server.probe")
    parser.description = (
        "Asks the server that has these settings for its health; most of them make no difference to it."
    )
    parser.epilog = "Mutual TLS: PHS_ENCODER_CERT and PHS_ENCODER_KEY name a client certificate and its key, in PEM."
    parser.add_argument("name", nargs="?", choices=_NAMES, default=_NAMES[0], help="what to ask for")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for the answer")
    options = parser.parse_args(arguments)
    try:
        status = _status(from_namespace(options), options.name, options.timeout)
    except InvalidInput as error:
        parser.error(f"{error.field}: {error}")
    except (OSError, grpc.RpcError) as error:
        status = f"no answer ({error.details() or error.code().name if isinstance(error, grpc.Call) else error})"
    print(f"{options.name}: {status}")
    return 0 if status == _Status.Name(_Status.SERVING) else 1


def _status(settings: Settings, name: str, timeout: float) -> str:
    """The name of a serving status.

    Raises:
        OSError, grpc.RpcError: no answer.
        InvalidInput: a file of a certificate cannot be read.
    """
    host = _EVERYWHERE.get(settings.host, settings.host).strip("[]")
    target = f"[{host}]:{settings.port}" if ":" in host else f"{host}:{settings.port}"
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if settings.tls_cert:
        pem = read_small_file(settings.tls_cert, "tls_cert")
        options.append(("grpc.ssl_target_name_override", _certified_name(settings, host, timeout)))
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(pem, *_client_pair()), options)
    else:
        channel = grpc.insecure_channel(target, options)
    with channel:
        request = health_pb2.HealthCheckRequest(service=name)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
    return str(_Status.Name(answer.status))


def _client_pair() -> tuple[bytes | None, bytes | None]:
    """Key and certificate chain for mutual TLS."""
    key, certificate = (os.environ.get(f"PHS_ENCODER_{name}") for name in ("KEY", "CERT"))
    if not key or not certificate:
        return None, None
    return read_small_file(key, "PHS_ENCODER_KEY"), read_small_file(certificate, "PHS_ENCODER_CERT")


def _certified_name(settings: Settings, host: str, timeout: float) -> str:
    """A name in the server's certificate, which is rarely made out for the loopback address that is asked here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # The server's own certificate is what is trusted, whoever signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(settings.tls_cert)
    with (
        socket.create_connection((host, settings.port), timeout) as connection,
        context.wrap_socket(connection) as secured,
    ):
        certificate: dict[str, Any] = secured.getpeercert() or {}
    return next((str(name) for _, name in certificate.get("subjectAltName", ())), host)


if __name__ == "__main__":
    sys.exit(main())
