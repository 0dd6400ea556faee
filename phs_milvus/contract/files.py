"""Reading files that are small by nature: settings, tokens, certificates."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_LIMIT = 2**20


def read_small(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: as `open` does, or the file has more than 1 MiB; a device may have no end.
    """
    with Path(path).open("rb") as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data
