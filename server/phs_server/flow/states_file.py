"""A file of states, mapped: what is not looked at is not read, and what was read is the system's to forget.

See phs_milvus.contract.states_file for its columns. pyarrow is imported only where there is such a file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput, ModelMismatch, StateError, reason_of, shown
from phs_milvus.contract.int8_states import Int8States, wrong_scales
from phs_milvus.contract.scanning import Key, PackedKeys
from phs_milvus.contract.states_file import StatesHeader, arrow
from phs_milvus.contract.types import ModelInfo

Rows = slice | npt.NDArray[np.int64]


class StatesFile:
    """States and keys of a collection, by row. Thread-safe; the file must not be changed in place while it is mapped.

    Attributes:
        header: what the file says of itself.
        parts: the states in the file's own batches.
        key_bytes: of the longest key.

    Args:
        path: written by phs-milvus export-states.
        info: the model that is to read the states.

    Raises:
        StateError: it cannot be read, is no such file or is damaged, or a scale is none.
        ModelMismatch: its states are of another model.
        PhsError: pyarrow is not installed.
    """

    def __init__(self, path: str, info: ModelInfo) -> None:
        pa = arrow()
        place = Path(path).expanduser()
        try:
            if place.exists() and not place.is_file():
                raise StateError("is not a regular file", "states")
            reader = pa.ipc.open_file(pa.memory_map(str(place)))
            self.header = StatesHeader.of(reader.schema)
            _check_model(self.header, info)
            batches = [_checked(reader.get_batch(index)) for index in range(reader.num_record_batches)]
            self.parts = [_states(batch) for batch in batches]
        except StateError as error:
            raise StateError(f"{shown(path)}: {error}", "states") from None
        except ModelMismatch as error:
            raise ModelMismatch(f"{shown(path)} {error}") from None
        except (OSError, pa.ArrowException) as error:
            reason = shown(reason_of(error))
            raise StateError(f"{shown(path)}: {reason}; export the states again", "states") from None
        self._keys = pa.chunked_array([batch.column("key") for batch in batches], reader.schema.field("key").type)
        self.has_text_keys = pa.types.is_string(self._keys.type)
        self._starts = np.cumsum([0, *map(len, self.parts)]).tolist()
        self.key_bytes = _longest(self._keys) if self.has_text_keys else 8

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(part.nbytes for part in self.parts)

    def at(self, rows: Rows) -> Int8States:
        """The states of some rows, a slice of them or ascending numbers; of one batch's slice without a copy."""
        if isinstance(rows, slice):
            first, last = (bisect_right(self._starts, row) - 1 for row in (rows.start, rows.stop - 1))
            found = [
                self.parts[part][max(0, rows.start - self._starts[part]) : rows.stop - self._starts[part]]
                for part in range(first, last + 1)
            ]
        else:
            bounds = np.searchsorted(rows, self._starts)
            found = [
                self.parts[part][rows[start:stop] - self._starts[part]]
                for part, (start, stop) in enumerate(pairwise(bounds))
                if stop > start
            ]
        if len(found) == 1:
            return found[0]
        return Int8States(
            np.concatenate([part.values for part in found]), np.concatenate([part.scales for part in found])
        )

    def keys(self, rows: npt.NDArray[np.int64]) -> Sequence[Key]:
        """The primary keys of some rows, in their order."""
        keys: list[Key] = self._keys.take(arrow().array(rows)).to_pylist()
        return keys

    def rows_of(self, keys: PackedKeys) -> npt.NDArray[np.int64]:
        """The rows with one of these keys, ascending.

        Raises:
            InvalidInput: keys of the other type than the file's, or texts that are no UTF-8.
        """
        if not len(keys):
            return np.empty(0, np.int64)
        if (keys.numbers is None) != self.has_text_keys:
            kinds = ("texts", "numbers") if self.has_text_keys else ("numbers", "texts")
            raise InvalidInput(
                f"of collection {shown(self.header.collection)!r} are {kinds[0]}, not {kinds[1]}", "keys"
            )
        import pyarrow.compute as pc

        # Over all batches at once, or the set would be hashed for each of them.
        among = pc.is_in(self._keys, value_set=_arrow_keys(keys))
        found: npt.NDArray[np.int64] = np.flatnonzero(among.to_numpy())
        return found


def _check_model(header: StatesHeader, info: ModelInfo) -> None:
    if header.fingerprint != info.fingerprint:
        raise ModelMismatch(
            f"holds states of {shown(header.model_id)!r} (fingerprint {shown(header.fingerprint[:12])}), but this "
            f"server runs {info.model_id!r} ({info.fingerprint[:12]}); export a collection of this model"
        )
    if header.hidden_size != info.hidden_size:
        raise StateError(f"states have hidden size {header.hidden_size}, and those of the model {info.hidden_size}")


def _checked(batch: Any) -> Any:
    """A batch that can be read without reading beyond it.

    Raises:
        StateError: it holds nulls.
        pyarrow.ArrowException: it is damaged.
    """
    batch.validate(full=True)
    for name in ("key", "scales", "values"):
        column = batch.column(name)
        inner = column.storage.flatten() if name != "key" else column
        if column.null_count or inner.null_count:
            raise StateError(f"column {name} holds nulls; export the states again")
    return batch


def _states(batch: Any) -> Int8States:
    scales, values = (batch.column(name).to_numpy_ndarray() for name in ("scales", "values"))
    if wrong_scales(scales).any():
        raise StateError("holds a scale that is NaN, negative or too large; export the states again")
    return Int8States(values, scales)


def _longest(keys: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.max(pc.binary_length(keys)).as_py() or 0)


def _arrow_keys(keys: PackedKeys) -> Any:
    pa = arrow()
    if keys.numbers is not None:
        return pa.array(keys.numbers)
    offsets = np.concatenate([[0], keys.ends]).astype(np.int32)
    texts = pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(keys.texts))
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raise InvalidInput("hold a text that is not UTF-8", "keys") from None
    return texts
