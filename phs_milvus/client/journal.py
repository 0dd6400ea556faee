"""Which keys are done: a small file that survives a crash at any moment.

with Journal("feed.done") as done, BulkSession(encoder, feed, done=done) as session:
    for key, result in session:
        ...                 # store it, and then:
        done.add(key)
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any, TypeAlias

from phs_milvus.contract.errors import InvalidInput, reason_of, shown

JournalKey: TypeAlias = "str | int | bytes"


class Journal(Container[JournalKey]):
    """A set of keys in a file of SQLite, in little memory however many there are. Thread-safe.

    A key that was added is there after kill -9; after a power failure the last ones may be missing, and are then done
    again. The file must be on a disk of this machine. Keys are str, bytes, and int of 64 bits with a sign.

    Raises:
        InvalidInput: the file cannot be opened or written, or is something else; by `add` and `in` also a key that is
            of another kind, a larger number, or text with lone surrogates.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            # Without a wait for the disk at every key.
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS done (key NOT NULL PRIMARY KEY) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def add(self, key: JournalKey) -> None:
        """Says that a key is done; it may be there already."""
        self._execute("INSERT OR IGNORE INTO done VALUES (?)", key)

    def __contains__(self, key: object) -> bool:
        return bool(self._execute("SELECT 1 FROM done WHERE key = ?", key))

    def __len__(self) -> int:
        count: int = self._execute("SELECT count(*) FROM done")[0][0]
        return count

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        for value in values:
            if isinstance(value, bool) or not isinstance(value, str | int | bytes):
                raise InvalidInput(f"a journal's keys are str, int or bytes, got {type(value).__name__}", "key")
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchall()
        except OverflowError:
            raise InvalidInput(f"{values[0]} has more than 64 bits with its sign; give str(key)", "key") from None
        except UnicodeEncodeError:
            raise InvalidInput(f"{values[0]!r} has lone surrogates; give os.fsencode(key)", "key") from None
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InvalidInput:
        return InvalidInput(f"{shown(self._path)}: {reason_of(error)}; give a file on a local disk", "journal")
