"""What took time to find out about this machine or a model, kept between starts in small files of the user's cache.

Nothing depends on it: a cache that cannot be read is an empty one, and one that cannot be written stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.files import read_small_file

_MOST_ENTRIES = 100


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME/phs-milvus, by default ~/.cache/phs-milvus; None for a user without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):
        return (Path(named) if Path(named).is_absolute() else Path.home() / ".cache") / "phs-milvus"
    return None


class Cache:
    """JSON values by key, in one file of at most 1 MiB.

    An entry carries a digest of itself, so that what was damaged or edited by hand counts as missing. Whether a value
    means anything is for the caller to check.

    Args:
        name: of the file, without its ending.
    """

    def __init__(self, name: str) -> None:
        folder = cache_folder()
        self._path = None if folder is None else folder / f"{name}.json"

    def get(self, key: str) -> Any:
        """The value put last, or None."""
        entry = self._entries().get(key)
        if isinstance(entry, dict) and entry.get("digest") == _digest(key, entry.get("value")):
            return entry["value"]
        return None

    def put(self, key: str, value: Any) -> None:
        """Keeps a value, and forgets the oldest ones where there are too many."""
        if self._path is None:
            return
        entries = self._entries()
        entries.pop(key, None)
        entries[key] = {"value": value, "digest": _digest(key, value)}
        kept = dict(list(entries.items())[-_MOST_ENTRIES:])
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may read or write at the same time: a file is there whole, or not at all.
            descriptor, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(kept, file, indent=1)
                Path(name).replace(self._path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def _entries(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            entries = json.loads(read_small_file(self._path, "cache"))
        except (InvalidInput, ValueError, RecursionError):
            return {}
        return entries if isinstance(entries, dict) else {}


def _digest(key: str, value: Any) -> str:
    return hashlib.sha256(json.dumps([key, value], sort_keys=True).encode()).hexdigest()
