"""Bearer tokens: their file, and how a call carries one. Read here for the client and for the servers."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import logging
import os
from pathlib import Path

from phs_milvus.contract.errors import InvalidInput, TokenRefused
from phs_milvus.contract.files import read_small_file

log = logging.getLogger(__name__)


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


class Tokens:
    """The tokens that a server knows, out of a file.

    The file is read again when it changes. One that is gone, or cannot be used, leaves the last good tokens in force,
    with an error in the log.

    Raises:
        InvalidInput: the file cannot be used; see `read_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._stat()
        self._digests = self._read()

    def identify(self, authorization: str) -> str:
        """What stands for the token of a call.

        Args:
            authorization: the call's header of this name; "" where it has none.

        Raises:
            TokenRefused: it carries no token, or one that is not known.
        """
        if (stamp := self._stat()) != self._stamp:
            self._stamp = stamp
            self.reload()
        scheme, _, token = authorization.partition(" ")
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
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()
