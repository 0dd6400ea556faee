"""Where commands read and write, checked before any work is done: what is not ours is not overwritten."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from phs_milvus.contract.errors import InvalidInput, reason_of, shown


def existing_folder(text: str, field: str) -> Path:
    """A folder to read from.

    Raises:
        InvalidInput: on `field`, where there is none.
    """
    try:
        if text and Path(text).is_dir():
            return Path(text)
    except (OSError, ValueError):  # a name that is too long, say
        pass
    raise InvalidInput(f"{shown(text)} is not a folder", field)


def output_folder(path: Path, field: str, ours: Callable[[Path], bool]) -> Path:
    """Makes a folder to write results to.

    Args:
        ours: whether a folder that is not empty was written by an earlier run, so that its files may be replaced.

    Raises:
        InvalidInput: on `field`: it cannot be written, or it holds something else.
    """
    _make(path, field)
    if any(path.iterdir()) and not ours(path):
        raise InvalidInput(f"{shown(path)} holds files of something else; name a new or empty folder", field)
    return path


def output_file(path: Path, field: str, ours: Callable[[Path], bool]) -> Path:
    """A file to write results to, its folder made; arguments and errors as of `output_folder`."""
    try:
        if path.is_dir():
            raise InvalidInput(f"{shown(path)} is a folder; name a file", field)
        foreign = path.is_file() and path.stat().st_size and not ours(path)
    except OSError as error:
        raise InvalidInput(f"cannot write {shown(path)}: {reason_of(error)}", field) from None
    if foreign:
        raise InvalidInput(f"{shown(path)} is there and holds something else; name another file", field)
    _make(path.parent, field)
    return path


def not_the_same(output: str | None, source: str, field: str) -> None:
    """Raises InvalidInput where a picture to write is the one that is read."""
    same = False
    with suppress(OSError, ValueError):  # one of them is not there
        same = output is not None and Path(output).samefile(source)
    if same:
        raise InvalidInput(f"{shown(output)} is the picture that is searched with; name another file", field)


def _make(folder: Path, field: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # permissions do not tell of a disk that is full or read-only
            pass
    except OSError as error:
        raise InvalidInput(f"cannot write to the folder {shown(folder)}: {reason_of(error)}", field) from None
