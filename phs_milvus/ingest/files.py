"""Image files on a disk: finding them in a fixed order, fingerprinting them, reading them ahead by threads."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# What phs_milvus.contract.images reads.
_NAMES = "jpg jpeg jpe jfif png webp gif bmp tif tiff avif jp2 j2k jpx ppm pgm pbm pnm"
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split())
_AHEAD = 16


def walk(
    root: Path, extensions: Collection[str], unreadable: Callable[[str, OSError], None] | None = None
) -> Iterator[str]:
    """Image files below `root`: paths relative to it with forward slashes, depth first in sorted order.

    Hidden files and folders are left out, and so are symbolic links to folders, which may be circles; links to
    files are followed. Memory: the names in the folders between `root` and the current file.

    Args:
        extensions: lower case, with the dot.
        unreadable: called with the relative path of a folder that cannot be listed.
    """
    trail = [("", iter(_listing(root, "", unreadable)))]
    while trail:
        folder, names = trail[-1]
        for name, is_folder in names:
            path = f"{folder}{name}"
            if is_folder:
                trail.append((f"{path}/", iter(_listing(root, f"{path}/", unreadable))))
                break
            if Path(name).suffix.lower() in extensions:
                yield path
        else:
            trail.pop()


def _listing(root: Path, folder: str, unreadable: Callable[[str, OSError], None] | None) -> list[tuple[str, bool]]:
    try:
        with os.scandir(root / folder) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".") and not (entry.is_symlink() and entry.is_dir())
            )
    except OSError as error:
        if unreadable is not None:
            unreadable(folder or "./", error)
        return []


def sha256_of(path: Path) -> str:
    """Digest of a file in hex, read in pieces; "" where it cannot be read."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError:
        return ""


def is_gone(path: Path) -> bool:
    """Whether there certainly is no such file: not so where it merely cannot be looked at."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def is_another(stored: str, path: Path) -> bool:
    """Whether `stored` names another file than `path`, and one that is still there."""
    if stored in ("", str(path)):
        return False
    try:
        return not Path(stored).samefile(path)  # not so through a link, say from where a folder was before
    except (OSError, ValueError):
        return not is_gone(Path(stored))


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """(item, function(item)) in order, computed a few items ahead by threads."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) == _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for item, future in waiting:
        yield item, future.result()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cuts `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
