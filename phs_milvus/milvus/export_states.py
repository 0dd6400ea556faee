"""Writes a collection's keys and states into one file, which `phs-server --states` scans; int8, whatever rows hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import InvalidInput, StateError, reason_of, shown
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.states_file import StatesHeader, arrow
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id

# Rows read, and written, at a time: 35 MB of float16 states as text for D = 768.
_ROWS = 8192


@dataclass(frozen=True)
class StatesExport:
    """What was written. Prints as a sentence.

    Attributes:
        file: the file.
        rows: in it.
        without_state: rows of the collection that have no state, which are left out.
        exported_at: when the export began (UTC): what changed later may not be in the file.
    """

    file: Path
    rows: int
    without_state: int
    exported_at: datetime

    def __str__(self) -> str:
        left = f"; {self.without_state} rows without a state are left out" if self.without_state else ""
        return f"{self.rows} states in {self.file}, as of {self.exported_at.isoformat(timespec='seconds')}{left}"


def export_states(collection: FocusedCollection, file: str | Path) -> StatesExport:
    """Writes the keys and states of all rows, in ascending order of the keys, in bounded memory.

    The file has its name when it is complete: a server that maps one of that name keeps what it has mapped.

    Raises:
        InvalidInput: the file cannot be written.
        StateError: a stored state that is not one of the collection's model; the message names the row.
        CollectionError: Milvus cannot be read.
        PhsError: pyarrow is not installed.
    """
    pa, path = arrow(), Path(file)
    model, at = collection.model, datetime.now(timezone.utc)
    header = StatesHeader(collection.name, at, model.fingerprint, model.model_id, model.hidden_size)
    schema = header.schema(text_keys=collection.layout.id_max_length is not None)
    rows = without = 0
    ids = collection.iterate_ids()
    with _replacing(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        while page := list(islice(ids, _ROWS)):
            stored = [(key, text) for key, text in zip(page, collection.states(page), strict=True) if text]
            without += len(page) - len(stored)
            rows += len(stored)
            if stored:
                writer.write_batch(_batch(stored, schema, collection))
    return StatesExport(path, rows, without, at)


def _batch(stored: Sequence[tuple[Id, str]], schema: object, collection: FocusedCollection) -> object:
    pa = arrow()
    keys = [key for key, _ in stored]
    int8 = _int8(collection, keys, [text for _, text in stored])
    tensors = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(part)) for part in (int8.scales, int8.values)
    ]
    key_type = schema.field("key").type  # type: ignore[attr-defined]
    return pa.record_batch([pa.array(keys, key_type), *tensors], schema=schema)


def _int8(collection: FocusedCollection, keys: Sequence[Id], texts: Sequence[str]) -> Int8States:
    """The states of rows; those that are int8 as they are, for rounding twice is not rounding once."""
    hidden_size = collection.model.hidden_size
    rounded: list[int] = []
    others: list[int] = []
    for row, text in enumerate(texts):
        (rounded if state_codec.format_of(text, hidden_size) == "int8" else others).append(row)
    parts = []
    for group in filter(None, (rounded, others)):
        try:
            found = state_codec.unpack_stored([texts[row] for row in group], hidden_size, [keys[row] for row in group])
        except StateError as error:
            raise StateError(f"collection '{collection.name}', {error}") from None
        parts.append(found if isinstance(found, Int8States) else Int8States.of(found))
    place = np.argsort([*rounded, *others])
    values, scales = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "scales"))
    return Int8States(values[place], scales[place])


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside it to write to, which takes its name at the end."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
        except OSError as error:
            raise InvalidInput(f"cannot write {shown(path)}: {reason_of(error)}", "file") from None
    finally:
        with suppress(OSError):
            part.unlink()
