"""A Milvus collection -> Parquet: embeddings, states, digests and all other fields, in ascending order of the keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from phs_milvus.contract.errors import InvalidInput, ModelMismatch, shown
from phs_milvus.ingest.files import chunks
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id
from phs_milvus.scale.parts import Picture, keys_of, model_of, table_of
from phs_milvus.scale.places import Place

_MOST_PER_PART = 1_000_000


@dataclass
class ExportReport:
    """What `export` did.

    Attributes:
        rows: of the collection when it began.
        there: rows that an earlier run had written.
        written: by this run, into `parts` files.
        without_state: of these, those that have no state.
        seconds: wall time.
    """

    rows: int = 0
    there: int = 0
    written: int = 0
    parts: int = 0
    without_state: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        text = f"{self.rows:,} rows in {self.seconds:.1f} s: {self.written:,} written into {self.parts:,} parts"
        text += f", {self.there:,} there already" if self.there else ""
        return text + (f"; {self.without_state:,} have no state" if self.without_state else "")


def export(
    collection: FocusedCollection,
    output: str,
    *,
    rows_per_part: int = 10_000,
    progress: Callable[[ExportReport], None] | None = None,
) -> ExportReport:
    """Writes every row of a collection into OUTPUT/parts, in the format of `phs_milvus.scale.parts`.

    It goes on behind the last key that is there when it is run again. Rows that are written meanwhile may be in the
    files or not.

    Args:
        collection: also an attached one, whose states are in its side collection.
        output: a folder, or URI of one.
        rows_per_part: rows a file, which are in memory together.
        progress: called after every part.

    Raises:
        InvalidInput: an argument cannot be used; `.field` names it.
        ModelMismatch: the files that are there are of another model.
    """
    started = time.monotonic()
    if not 1 <= rows_per_part <= _MOST_PER_PART:
        raise InvalidInput(f"is 1 to {_MOST_PER_PART:,}, got {rows_per_part}", "rows_per_part")
    folder = Place.of(output, "output") / "parts"
    last, number, there = _written(folder, collection)
    report = ExportReport(rows=collection.count(), there=there)
    keys = dropwhile(lambda key: last is not None and key <= last, collection.iterate_ids())
    for ids in chunks(keys, rows_per_part):
        pictures = _pictures(ids, collection)
        integers = collection.layout.id_max_length is None
        part = folder / f"part-{number:06d}.parquet"
        part.write_table(table_of(pictures, collection.model, integer_keys=integers))
        number += 1
        report.parts += 1
        report.written += len(pictures)
        report.without_state += sum(one.state is None for one in pictures)
        report.seconds = time.monotonic() - started
        if progress is not None:
            progress(report)
    report.seconds = time.monotonic() - started
    return report


def _written(folder: Place, collection: FocusedCollection) -> tuple[Any, int, int]:
    """The last key of an earlier run, the number of the next part, and how many rows there are."""
    files = folder.files(".parquet")
    if not files:
        return None, 0, 0
    names = [f"part-{number:06d}.parquet" for number in range(len(files))]
    if [file.name for file in files] != names:
        raise InvalidInput(f"{shown(folder.path)} holds files of something else; name a new folder", "output")
    try:
        collection.model.check(model_of(files), collection.name)
    except ModelMismatch as error:
        raise ModelMismatch(f"{shown(folder.path)}: {error}") from None
    keys = [keys_of(file) for file in files]
    return keys[-1][-1].as_py(), len(files), sum(map(len, keys))


def _pictures(ids: list[Id], collection: FocusedCollection) -> list[Picture]:
    at, side = collection.layout, collection.side
    names = ["*", at.embedding, *([at.state] if at.state else [])]
    rows = {row[at.id]: row for row in collection.get(ids, names)}
    beside = {} if side is None else dict(zip(ids, side.read(ids), strict=True))
    pictures = []
    for key in ids:
        if key not in rows:  # deleted meanwhile
            continue
        row = rows[key]
        del row[at.id]
        embedding = row.pop(at.embedding)
        state = beside[key].state if beside else row.pop(str(at.state), None)
        digest = row.pop(at.digest, None) if at.digest else None
        if beside:
            digest = beside[key].digest or digest
        width, height = (row.pop(name) if isinstance(row.get(name), int) else None for name in ("width", "height"))
        pictures.append(Picture(key, embedding, state or None, digest or "", width, height, row))
    return pictures
