"""Image files on disk: finds them in a fixed order, computes their digests, and reads ahead in threads."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, takewhile
from pathlib import Path
from typing import TypeVar

from phs_milvus.contract.headers import SIGNATURE_BYTES, format_of

T = TypeVar("T")
R = TypeVar("R")

# The formats that phs_milvus.contract.headers reads; "" stands for files without extension that start like an image.
_NAMES = "jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif heic heif hif jp2 j2k jpx ppm pgm pbm pnm"
IMAGE_EXTENSIONS = frozenset(f".{name}" for name in _NAMES.split()) | {""}
_AHEAD = 16

# Reasons to leave a file out; its extension is another one.
NO_EXTENSION = "without extension"
LINKED_FOLDER = "linked folders"
LINKED_FILE = "links to files that are there anyway"


def walk(
    root: Path,
    extensions: Collection[str],
    unreadable: Callable[[str, OSError], None] | None = None,
    left_out: Callable[[str], None] | None = None,
) -> Iterator[str]:
    """Yields the image files below `root`: their paths relative to it with forward slashes, depth first and sorted.

    A file is one image: a symbolic link to a file is followed unless the file itself is below `root`, or another link
    led to it. Links to folders are not followed, because they may form a circle. Hidden files and folders are skipped.
    Memory holds the names in the folders between `root` and the current file, and the targets of links.

    Args:
        extensions: of image files, lower case with the dot; "" stands for files without one that start like an image.
        unreadable: called with the relative path and the error of each folder that cannot be listed.
        left_out: called with the extension, or another reason, of each file that is not yielded.
    """
    real_root = os.path.realpath(root)
    targets: set[str] = set()

    def reason_against(path: str, is_link: bool) -> str:
        """The reason to leave a file out; "" for a file to yield."""
        if is_link:
            if (root / path).is_dir():
                return LINKED_FOLDER
            target = os.path.realpath(root / path)
            if target in targets or _is_met(target, real_root, extensions):
                return LINKED_FILE
            targets.add(target)
        return _reason_against(root / path, extensions)

    trail = [("", iter(_listing(root, "", unreadable)))]
    while trail:
        folder, names = trail[-1]
        for name, is_folder, is_link in names:
            path = f"{folder}{name}"
            if is_folder:
                trail.append((f"{path}/", iter(_listing(root, f"{path}/", unreadable))))
                break
            if not (reason := reason_against(path, is_link)):
                yield path
            elif left_out is not None:
                left_out(reason)
        else:
            trail.pop()


def _listing(
    root: Path, folder: str, unreadable: Callable[[str, OSError], None] | None
) -> list[tuple[str, bool, bool]]:
    """(name, is a folder, is a link) of every entry that is not hidden, sorted."""
    try:
        with os.scandir(root / folder) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in entries
                if not entry.name.startswith(".")
            )
    except OSError as error:
        if unreadable is not None:
            unreadable(folder or "./", error)
        return []


def _reason_against(path: Path, extensions: Collection[str]) -> str:
    extension = path.suffix.lower()
    if extension or "" not in extensions:
        return "" if extension in extensions else extension or NO_EXTENSION
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return NO_EXTENSION
        with path.open("rb") as file:
            return "" if format_of(file.read(SIGNATURE_BYTES)) else NO_EXTENSION
    except OSError:
        return NO_EXTENSION


def _is_met(target: str, real_root: str, extensions: Collection[str]) -> bool:
    """Whether a file, given without any link in its path, is below the root and yielded under its own name."""
    inside = Path(os.path.relpath(target, real_root)).parts
    if any(part.startswith(".") for part in inside):  # ".." above all
        return False
    return Path(target).is_file() and not _reason_against(Path(target), extensions)


def sha256_of(path: Path) -> str:
    """The file's sha256, 64 hexadecimal digits; "" where it cannot be read."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError:
        return ""


def is_gone(path: Path) -> bool:
    """Whether the file certainly does not exist; False where that cannot be found out."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def is_another(stored: str, path: Path) -> bool:
    """Whether `stored` is the path of another file than `path`, and that file still exists."""
    if stored in ("", str(path)):
        return False
    try:
        return not Path(stored).samefile(path)  # the same file by a link is not another one
    except (OSError, ValueError):
        return not is_gone(Path(stored))


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yields (item, function(item)) in order, and computes a few items ahead in threads."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) == _AHEAD:
            first, future = waiting.popleft()
            yield first, future.result()
    for item, future in waiting:
        yield item, future.result()


def until(stop: threading.Event, items: Iterable[T]) -> Iterator[T]:
    """The items as long as `stop` is not set."""
    return takewhile(lambda _: not stop.is_set(), items)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cuts `items` into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
