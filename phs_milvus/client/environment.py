"""The embedding server that the environment names, for what has no flags or arguments of its own."""

from __future__ import annotations

import os

from phs_milvus.client.channels import Tls
from phs_milvus.contract.tokens import read_tokens


def tls() -> Tls | bool:
    """TLS by PHS_ENCODER_CA, PHS_ENCODER_CERT and PHS_ENCODER_KEY, or PHS_ENCODER_TLS=1."""
    files = {name: os.environ.get(f"PHS_ENCODER_{name.upper()}") for name in ("ca", "cert", "key")}
    if any(files.values()):
        return Tls(**files)
    return os.environ.get("PHS_ENCODER_TLS", "").lower() not in ("", "0", "false", "no", "off")


def token() -> str | None:
    """The first bearer token in the file that PHS_ENCODER_TOKEN_FILE names.

    Raises:
        InvalidInput: the file cannot be used.
    """
    path = os.environ.get("PHS_ENCODER_TOKEN_FILE")
    if not path:
        return None
    # The server's own file will do: it may hold several tokens.
    return read_tokens(path, "PHS_ENCODER_TOKEN_FILE")[0]
