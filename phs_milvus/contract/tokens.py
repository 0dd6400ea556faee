"""Bearer tokens: their file, and how a call carries one. Read here for the client and for the server."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.files import read_small_file


def read_tokens(path: str | os.PathLike[str], field: str) -> list[str]:
    """The tokens in a file: one per line; empty lines, lines that start with #, and a byte order mark are skipped.

    Args:
        field: the setting that names the file, for errors.

    Raises:
        InvalidInput: a file that cannot be read, one without a token, or a token that no gRPC call can carry.
    """
    name, data = Path(path), read_small_file(path, field).removeprefix(codecs.BOM_UTF8)
    tokens = []
    for number, line in enumerate(map(bytes.strip, data.splitlines()), 1):
        if not line or line.startswith(b"#"):
            continue
        if not all(0x20 <= character <= 0x7E for character in line):
            raise InvalidInput(f"line {number} of {name} is not printable ASCII, which gRPC needs", field)
        tokens.append(line.decode("ascii"))
    if not tokens:
        raise InvalidInput(f"{name} holds no token; write one per line", field)
    return tokens
