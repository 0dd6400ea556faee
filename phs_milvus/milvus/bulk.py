"""Bulk import: a Milvus server reads Parquet files from its own storage, past the proxy and the message queue.

This is do_bulk_insert of pymilvus, which servers from 2.3.4 take Parquet for; newer ones keep it beside their job API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.milvus.connection import MilvusClient, check_server, is_lite, translated_errors

_TIMEOUT_S, _PAUSE_S = 30.0, 0.5
_TASKS = 10_000
_ENDED = ("Completed", "Failed", "Failed and cleaned")


class BulkImport:
    """Imports files into one collection. Rows are added, never replaced.

    Raises:
        InvalidInput: on `import_as`: Milvus Lite, or a server before 2.3, cannot do it.
    """

    def __init__(self, client: MilvusClient, name: str) -> None:
        if is_lite(client):
            raise InvalidInput("Milvus Lite has no bulk import; leave it out, and rows go in by batches", "import_as")
        check_server(client, (2, 3), "importing Parquet", "import_as")
        self._name = name
        # MilvusClient itself has no bulk import.
        self._handler: Any = client._get_connection()

    def wait_for_earlier(self) -> None:
        """Returns when no import into the collection is under way, as one that an interrupted load began."""
        with translated_errors(f"cannot list the imports of {self._name!r}"):
            while any(
                task.state_name not in _ENDED
                for task in self._handler.list_bulk_insert_tasks(_TASKS, self._name, timeout=_TIMEOUT_S)
            ):
                time.sleep(_PAUSE_S)

    def completed(self) -> set[str]:
        """The files that were imported into the collection, as far as the server remembers."""
        with translated_errors(f"cannot list the imports of {self._name!r}"):
            tasks = self._handler.list_bulk_insert_tasks(_TASKS, self._name, timeout=_TIMEOUT_S)
        return {task.files for task in tasks if task.state_name == "Completed"}

    def run(self, file: str, tell: Callable[[int], None]) -> int:
        """Imports one Parquet file and returns how many rows it had; they are seen a little later.

        Args:
            file: its path as the server sees it in its storage.
            tell: called with the percentage done.

        Raises:
            CollectionError: the import failed; the message has the server's reason.
        """
        with translated_errors(f"cannot import {shown(file)} into {self._name!r}"):
            # Never tried again: it may have begun, and only the answer lost.
            task = self._handler.do_bulk_insert(self._name, "", [file], timeout=_TIMEOUT_S)
            while True:
                found = self._handler.get_bulk_insert_state(task, timeout=_TIMEOUT_S)
                if found.state_name in _ENDED:
                    break
                tell(int(found.infos.get("progress_percent") or 0))
                time.sleep(_PAUSE_S)
        if found.state_name != "Completed":
            raise CollectionError(
                f"Milvus could not import {shown(file)} into {self._name!r}: {shown(found.failed_reason)}; is this the "
                "file's path in the storage of the server? Without bulk import, rows go in by batches"
            )
        tell(100)
        return int(found.row_count)
