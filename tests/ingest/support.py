"""Runs an ingest, and checks that a collection holds exactly the files on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.images import load_image
from phs_milvus.ingest.folder import IngestReport, ingest_folder
from phs_milvus.milvus.collection import FocusedCollection

MakeImages = Callable[..., list[Path]]
URI = os.environ.get("PHS_TEST_MILVUS_URI")


def run(root: Path, collection: FocusedCollection, encoder: Encoder, **options: object) -> IngestReport:
    return ingest_folder(root, collection, encoder, **{"progress": False, **options})


def rows_of(collection: FocusedCollection) -> dict[str, dict]:
    ids = list(collection.iterate_ids())
    assert len(ids) == len(set(ids)) == collection.count()
    return {row["id"]: row for row in collection.get(ids, ["*", "phs_state", "embedding"])}


def check_complete(root: Path, collection: FocusedCollection) -> dict[str, dict]:
    """The collection holds exactly the files on disk, each row whole and of the file as it is."""
    rows = rows_of(collection)
    files = {str(path.relative_to(root)): path for path in root.rglob("*.jpg")}
    assert set(rows) == set(files)
    state_codec.unpack([row["phs_state"] for row in rows.values()], collection.model.hidden_size)
    for name, path in files.items():
        assert rows[name]["digest"] == load_image(path).digest
        assert rows[name]["path"] == str(path)
    return rows
