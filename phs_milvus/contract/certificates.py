"""Certificates and keys in PEM files, checked before a server uses them. Read here for every server."""

from __future__ import annotations

import ssl

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.files import read_small_file


def read_pair(certificate: str, key: str) -> tuple[bytes, bytes] | None:
    """A server's certificate chain and its key, as PEM; None where neither is named.

    Servers take a certificate and a key of anything, and then fail without a reason, or ask for a password on the
    terminal.

    Args:
        certificate, key: paths, those of the settings tls_cert and tls_key; "" for none.

    Raises:
        InvalidInput: half of a pair, a file that cannot be read or is not PEM, or two that do not belong together.
    """
    files = {"tls_cert": certificate, "tls_key": key}
    if not any(files.values()):
        return None
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if not files[name]:
            raise InvalidInput(f"is missing, but --{other.replace('_', '-')} is given", name)
    pair = read_pem(certificate, "tls_cert"), read_pem(key, "tls_key")
    try:
        # A password, so that OpenSSL asks for none.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise InvalidInput(
            f"{key} is not the unencrypted key of the certificate in {certificate} ({reason})", "tls_key"
        ) from None
    return pair


def read_pem(path: str, field: str) -> bytes:
    """The content of a PEM file.

    Args:
        field: the setting that names it, for errors.

    Raises:
        InvalidInput: it cannot be read, or is something else.
    """
    data = read_small_file(path, field)
    if b"-----BEGIN " not in data:
        raise InvalidInput(f"{path} is not a PEM file", field)
    return data
