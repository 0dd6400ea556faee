"""Small files that a setting names: certificates, keys, token files. Reading one never hangs and never fills memory."""

from __future__ import annotations

import os
import stat

from phs_milvus.contract.errors import InvalidInput, reason_of, shown

_LARGEST = 2**20


def read_small_file(path: str | os.PathLike[str], field: str) -> bytes:
    """The content of a regular file of at most 1 MiB.

    Args:
        field: the setting that names it, for errors.

    Raises:
        InvalidInput: not there, not readable, no regular file (a folder, FIFO or device), or larger.
    """
    name = shown(os.fspath(path))
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidInput(f"{name} is not a regular file; copy it into one", field)
            data = file.read(_LARGEST + 1)
    except InvalidInput:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InvalidInput(f"cannot read {name}: {reason_of(error)}; check path and permissions", field) from None
    if len(data) > _LARGEST:
        raise InvalidInput(f"{name} is over 1 MiB; is it the right file?", field)
    return data


def _open_without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO otherwise waits for a writer, perhaps forever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
