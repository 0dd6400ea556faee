"""How a client reaches its servers: addresses, TLS, tokens, retries, keepalive."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from phs_milvus.client.requests import Metadata
from phs_milvus.contract import proxies
from phs_milvus.contract.errors import EncoderUnavailable, InvalidInput, reason_of, shown
from phs_milvus.contract.files import read_small_file
from phs_milvus.contract.types import Limits

Address: TypeAlias = "str | Sequence[str]"

_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # No calls go to servers that are loading, draining or broken.
    "healthCheckConfig": {"serviceName": "phs.v1.FocusEncoder"},
    "methodConfig": [
        {"name": [{"service": "phs.v1.FocusEncoder"}], "retryPolicy": _RETRIES},
        # Bulk encodes resend unanswered items themselves (phs_milvus.client.bulk); gRPC would have to buffer every
        # message of the stream to do so.
        {"name": [{"service": "phs.v1.FocusEncoder", "method": name} for name in ("EncodeStream", "Locate")]},
    ],
}


@dataclass(frozen=True)
class Tls:
    """Files for TLS, all in PEM.

    Attributes:
        ca: the certificate authorities to trust; None: the system's.
        cert, key: this client's own certificate chain and key, for servers that ask for them (mutual TLS).
        server_name: the name in the server's certificate, where it is not the one in the address. With several
            addresses every server's certificate must carry this name, or else the host name of the first address.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None


def channel_credentials(tls: Tls | bool | None) -> grpc.ChannelCredentials | None:
    """Credentials of a channel; None for plaintext.

    Raises:
        InvalidInput: a file cannot be read, or only one of cert and key is given.
    """
    if not tls:
        return None
    files = Tls() if tls is True else tls
    if (files.cert is None) != (files.key is None):
        raise InvalidInput("cert and key belong together; one is missing", "tls")
    return grpc.ssl_channel_credentials(
        *(None if path is None else read_small_file(path, "tls") for path in (files.ca, files.key, files.cert))
    )


def channel_options(address: Address, tls: Tls | bool | None) -> list[tuple[str, int | str]]:
    """gRPC channel arguments."""
    options: list[tuple[str, int | str]] = [
        # phs_milvus.client.requests keeps requests within the server's own limit, which may be above the default,
        # and never asks for an answer above the default.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", Limits.message_bytes),
        # gRPC does not retry a call whose message outgrew this buffer; the default is 256 KiB, less than many photos.
        ("grpc.per_rpc_retry_buffer_size", Limits.message_bytes),
        # Notices a server that vanished while calls wait for it; the server must allow pings this often.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A restarted server is found again within seconds; the default grows to two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        *proxies.channel_options(address if isinstance(address, str) else ",".join(address)).items(),
    ]
    name = tls.server_name if isinstance(tls, Tls) else None
    if name is None and tls and not isinstance(address, str):
        name = _host_and_port(address[0])[0]  # the certificates of several servers carry the name of the first
    if name:
        options += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    return options


def target_of(address: Address) -> tuple[str, str]:
    """(the text to show people, the target that gRPC connects to).

    Several addresses are resolved here, once, because gRPC takes lists of numeric addresses only.

    Raises:
        InvalidInput: no address, or one that is not host:port.
        EncoderUnavailable: a name does not resolve.
    """
    for item in [address] if isinstance(address, str) else address:
        if not item.isprintable() or " " in item:  # gRPC takes text only, and an undecodable argument is none
            raise InvalidInput(f"'{shown(item)}' is not host:port", "address")
    if isinstance(address, str):
        return address, address
    if not address:
        raise InvalidInput("none given", "address")
    people = ",".join(address)
    if len(address) == 1:
        return people, address[0]
    found: list[tuple[str, int]] = []
    for item in address:
        host, port = _host_and_port(item)
        try:
            found += [(str(entry[4][0]), port) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, ValueError) as error:
            raise EncoderUnavailable(f"cannot find host '{shown(host)}': {reason_of(error)}") from None
    four = [f"{host}:{port}" for host, port in found if ipaddress.ip_address(host).version == 4]
    six = [f"[{host}]:{port}" for host, port in found if ipaddress.ip_address(host).version == 6]
    # A host with both kinds is reached by IPv4.
    scheme, chosen = ("ipv4", four) if four else ("ipv6", six)
    return people, f"{scheme}:{','.join(dict.fromkeys(chosen))}"


def token_metadata(token: str | None) -> Metadata:
    """The gRPC metadata to send with every call."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise InvalidInput(f"'{shown(address)}' is not host:port", "address")
    return host.strip("[]"), int(port)
