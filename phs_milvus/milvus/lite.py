"""Repairs a database after Milvus Lite 3.2 was killed, which Lite itself does not."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

_LOG = re.compile(r"wal_(?:data|delta)_(\d+)\.arrow")


def set_aside_stored_logs(database: Path) -> None:
    """Renames write-ahead logs whose rows are already stored, before Milvus Lite opens the database.

    Lite stores rows in three steps: it writes the data file; it writes the manifest, which commits the data file and
    names the log in use from then on; and it deletes the older logs. If it is killed before the third step, it replays
    the older logs when it is opened, and searches then find every row in them twice. Nothing is done while another
    process has the database open.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with suppress(OSError), (database / "LOCK").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for manifest in database.rglob("manifest.json"):
            with suppress(ValueError, KeyError, TypeError):
                in_use = int(json.loads(manifest.read_text("utf-8"))["active_wal_number"])
                for log in (manifest.parent / "wal").glob("*.arrow"):
                    if (found := _LOG.fullmatch(log.name)) and int(found[1]) < in_use:
                        log.rename(log.with_name(f"{log.name}.stored"))
