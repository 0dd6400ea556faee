"""Parquet -> a Milvus collection: by bulk import where the server's storage can be written to, else by batches.

Either way it may be interrupted and run again: rows that are there already, with the digest that the Parquet has, are
left alone. What was loaded is verified (`phs_milvus.scale.verify`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.milvus.bulk import BulkImport
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Row
from phs_milvus.scale.parts import Picture, keys_of, model_of, parts_at, read, rows_of
from phs_milvus.scale.places import Place

# A server of 2.3 takes files up to 16 GB. In one of 1 GB, a few hundred thousand rows, a segment's worth is at hand.
_BYTES_PER_FILE = 2**30
_VISIBLE_S, _PAUSE_S = 600.0, 1.0
_PATIENCE_S = 180.0


@dataclass
class LoadReport:
    """What `load` did.

    Attributes:
        rows: of the Parquet files.
        there: rows that were there already.
        written: by batches. imported: by bulk import.
        without_state: rows that have no state, which are left out.
        seconds: wall time.
    """

    rows: int = 0
    there: int = 0
    written: int = 0
    imported: int = 0
    without_state: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Rows that are dealt with."""
        return self.there + self.written + self.imported + self.without_state

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} rows in {self.seconds:.1f} s: {self.imported:,} by bulk import, {self.written:,} by "
            f"batches, {self.there:,} there already"
        )
        return text + (f"; {self.without_state:,} without a state left out" if self.without_state else "")


def load(
    paths: Sequence[str],
    collection: FocusedCollection,
    *,
    import_to: str | None = None,
    import_as: str | None = None,
    progress: Callable[[LoadReport], None] | None = None,
) -> LoadReport:
    """Puts the rows of Parquet files (`phs_milvus.scale.parts`) into a collection.

    Args:
        paths: files, or folders of them, here or in a bucket; the output of `encode` or `export`.
        collection: of the same model.
        import_to: a folder, or URI of one, in the storage of the Milvus server, where files for bulk import may be
            written; None: rows go in by batches. Files are deleted there when their rows are seen.
        import_as: that folder's path as the server sees it; None: the path of `import_to`, in a bucket without the
            bucket's name.
        progress: called after every batch, and while a file is imported.

    Raises:
        InvalidInput: an argument cannot be used; `.field` names it.
        ModelMismatch: the rows are of another model than the collection.
        MilvusUnavailable: Milvus no longer answers. The next run goes on from what is stored.
    """
    started = time.monotonic()
    parts = parts_at(paths)
    collection.model.check(model_of(parts), collection.name)
    collection.check_writable()
    _check_keys(parts)
    report = LoadReport(rows=sum(rows_of(part) for part in parts))

    def tell() -> None:
        report.seconds = time.monotonic() - started
        if progress is not None:
            progress(report)

    with collection.patient(_PATIENCE_S):
        if import_to is not None:
            where = _Staging.at(import_to, import_as, collection)
            _by_import(parts, collection, where, report, tell)
        else:
            for part in parts:
                _by_batches(part, collection, report, tell)
        if report.written:
            collection.flush()
        collection.wait_until_indexed()
    tell()
    return report


def _check_keys(parts: list[Place]) -> None:
    """Raises InvalidInput where a key is there twice: bulk import would store both rows."""
    # Hashes, 8 bytes a row, find that among any number of keys.
    hashes = np.concatenate(
        [np.array([hash(str(key)) for key in keys_of(part).to_pylist()], np.int64) for part in parts]
    )
    if twice := len(hashes) - len(np.unique(hashes)):
        raise InvalidInput(
            f"{twice:,} rows have the key of another row; name files of one encoding or export", "parquet"
        )


def _by_batches(part: Place, collection: FocusedCollection, report: LoadReport, tell: Callable[[], None]) -> None:
    for page in read(part):
        usable = [one for one in page if one.state is not None]
        new = _missing(usable, collection)
        collection.upsert([_row(one, collection) for one in new])
        report.without_state += len(page) - len(usable)
        report.there += len(usable) - len(new)
        report.written += len(new)
        tell()


def _missing(pictures: list[Picture], collection: FocusedCollection) -> list[Picture]:
    """Those that the collection does not have, or has with another digest."""
    keys = [one.key for one in pictures]
    if collection.has_digests:
        there = collection.digests(keys)
    else:
        there = {row[collection.layout.id]: "" for row in collection.get(keys, [])}
    return [
        one for one in pictures if one.key not in there or (collection.has_digests and there[one.key] != one.digest)
    ]


def _row(one: Picture, collection: FocusedCollection) -> Row:
    state: Any = one.state
    hidden, wanted = collection.model.hidden_size, collection.model.state_format
    if state_codec.format_of(state, hidden) == "float16" and wanted == "int8":
        state = state_codec.unpack([state], hidden, [one.key])[0]  # is packed anew
    return Row(one.key, one.embedding, state, one.digest, _metadata(one, collection))


def _metadata(one: Picture, collection: FocusedCollection) -> dict[str, Any]:
    sizes = {"width": one.width, "height": one.height}
    known = {name: value for name, value in sizes.items() if value is not None}
    at = collection.layout
    return {name: value for name, value in {**one.metadata, **known}.items() if at.dynamic or name in at.others}


# --- bulk import --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Staging:
    """Where files for the server are written, and how it calls that folder."""

    place: Place
    prefix: str
    start: str  # of the names of this collection's files

    @classmethod
    def at(cls, import_to: str, import_as: str | None, collection: FocusedCollection) -> _Staging:
        place = Place.of(import_to, "import_to")
        own = place.path if place.local else place.path.partition("/")[2]
        return cls(place, (own if import_as is None else import_as).rstrip("/"), f"phs-{collection.name}-")

    def as_server(self, file: Place) -> str:
        return f"{self.prefix}/{file.name}" if self.prefix else file.name


def _by_import(
    parts: list[Place], collection: FocusedCollection, where: _Staging, report: LoadReport, tell: Callable[[], None]
) -> None:
    if collection.layout.others or not collection.layout.dynamic:
        has = ", ".join(collection.layout.others) or "no dynamic fields"
        raise InvalidInput(
            f"collection {collection.name!r} has fields of its own ({has}), which bulk import here does not fill; "
            "leave it out, and rows go in by batches",
            "import_to",
        )
    importing = BulkImport(collection.client, collection.name)
    _settle(importing, collection, where)
    new: list[Place] = []
    size = 0
    row_bytes = 4 * collection.model.embedding_size + state_codec.text_length(
        collection.model.hidden_size, collection.model.state_format
    )
    is_new = collection.count() == 0
    for part in parts:
        there = 0 if is_new else sum(len(page) - len(_missing(page, collection)) for page in read(part))
        if there:  # some of it, or all
            _by_batches(part, collection, report, tell)
            continue
        new.append(part)
        size += rows_of(part) * row_bytes
        if size >= _BYTES_PER_FILE:
            _import(new, importing, collection, where, report, tell)
            new, size = [], 0
    if new:
        _import(new, importing, collection, where, report, tell)


def _settle(importing: BulkImport, collection: FocusedCollection, where: _Staging) -> None:
    """Sees an interrupted load's imports to their end: their rows are not in the collection for another while."""
    importing.wait_for_earlier()
    imported = importing.completed()
    for file in where.place.files(".parquet"):
        if file.name.startswith(where.start):
            if where.as_server(file) in imported:
                _wait_until_seen(file, collection)
            file.delete()


def _import(
    parts: list[Place],
    importing: BulkImport,
    collection: FocusedCollection,
    where: _Staging,
    report: LoadReport,
    tell: Callable[[], None],
) -> None:
    names = "\0".join(part.path for part in parts)
    file = where.place / f"{where.start}{hashlib.sha256(names.encode()).hexdigest()[:24]}.parquet"
    left_out = 0

    def pages() -> Iterator[Any]:
        nonlocal left_out
        for part in parts:
            for page in read(part):
                usable = [one for one in page if one.state is not None]
                left_out += len(page) - len(usable)
                if usable:
                    yield _import_table(usable, collection)

    rows = file.write_tables(pages())
    if rows:
        report.imported += importing.run(where.as_server(file), lambda _: tell())
        _wait_until_seen(file, collection)
    file.delete()
    report.without_state += left_out
    tell()


def _import_table(pictures: list[Picture], collection: FocusedCollection) -> Any:
    """The columns of the collection; its dynamic fields are the column $meta."""
    import pyarrow as pa

    at, rows = collection.layout, [_row(one, collection) for one in pictures]
    states = [collection.packed(row) for row in rows]
    return pa.table(
        {
            at.id: pa.array([row.id for row in rows], pa.int64() if at.id_max_length is None else pa.string()),
            at.embedding: pa.array([row.embedding for row in rows], pa.list_(pa.float32())),
            str(at.state): pa.array(states, pa.string()),
            str(at.digest): pa.array([row.digest for row in rows], pa.string()),
            "$meta": pa.array([json.dumps(row.metadata, ensure_ascii=False) for row in rows], pa.string()),
        }
    )


def _wait_until_seen(file: Place, collection: FocusedCollection) -> None:
    """A server loads imported rows some 20 s after the import has ended."""
    key = file.first_value(collection.layout.id)
    until = time.monotonic() + _VISIBLE_S
    while not collection.get([key], []):
        if time.monotonic() > until:
            raise CollectionError(
                f"the rows of {shown(file.path)} were imported into {collection.name!r} and are not seen after "
                f"{_VISIBLE_S:.0f} s; see whether the server loads its segments, then run the same again"
            )
        time.sleep(_PAUSE_S)
