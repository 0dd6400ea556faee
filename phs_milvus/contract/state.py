"""The PHS state codec: a state, float16 [2, D] <-> what a Milvus row holds.

A state is the pair (residual r, head outputs o) of docs/DESIGN.md, "The method": all that the readout needs, whatever
the query. Milvus Lite takes no half-precision vectors, and the 2.x servers take one vector field per collection only,
so a row holds the state as base64 text in a VARCHAR field. There are two formats, and a collection may hold both: a
row's length tells which one it is.

    format   bytes before base64, numbers little-endian, arrays row-major             characters for D = 768
    float16  the state, float16 [2, D]                                                4,096
    int8     scales, float16 [2, ceil(D / 64)]; then values, int8 [2, D]              2,112

In int8, number i of a vector is values[i] * scales[i // 64]; see phs_milvus.contract.int8_states.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import InvalidInput, StateError, shown
from phs_milvus.contract.int8_states import Int8States, blocks_of, wrong_scales
from phs_milvus.contract.types import Float16Array, StateFormat, States

__all__ = [
    "MAX_TEXT",
    "STATE_FORMATS",
    "Int8States",
    "StateFormat",
    "States",
    "format_of",
    "pack",
    "text_length",
    "unpack",
    "unpack_stored",
]

STATE_FORMATS: tuple[StateFormat, ...] = get_args(StateFormat)
# Characters that a VARCHAR may be declared with.
MAX_TEXT = 65_535
# Below, texts of both formats can be of one length, and int8 saves nothing. No model is so small.
_LEAST_INT8 = 4


def text_length(hidden_size: int, state_format: StateFormat = "float16") -> int:
    """Characters of a packed state of hidden size D.

    Raises:
        InvalidInput: an unknown format, or int8 for D below 4.
    """
    return 4 * -(-_size(hidden_size, state_format) // 3)


def pack(state: npt.ArrayLike, state_format: StateFormat = "float16") -> str:
    """Encodes one state for a Milvus row.

    Args:
        state: [2, D] finite floats within float16's range; rounded to float16.
        state_format: "float16" keeps that exactly; "int8" rounds it further, and takes about half the space.

    Returns:
        base64 of the format's bytes.

    Raises:
        StateError: the shape is another one, or a value is NaN or outside float16's range.
        InvalidInput: as `text_length`.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(state).astype("<f2")
    if array.ndim != 2 or array.shape[0] != 2 or array.shape[1] == 0:
        raise StateError(f"a state has shape [2, D], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise StateError("a state must be finite and within float16's range (±65504)")
    _size(array.shape[1], state_format)
    if state_format == "float16":
        return base64.b64encode(array.tobytes()).decode("ascii")
    one = Int8States.of(array[None])
    return base64.b64encode(one.scales.astype("<f2").tobytes() + one.values.tobytes()).decode("ascii")


def format_of(text: str, hidden_size: int) -> StateFormat | None:
    """The format that a text has by its length; None where no state of this hidden size is so long."""
    return _formats_by_length(hidden_size).get(len(text))


def unpack(packed: Sequence[str], hidden_size: int, names: Sequence[object] | None = None) -> Float16Array:
    """Decodes the states of K rows, whatever the format of each.

    Args:
        packed: K texts made by `pack`.
        hidden_size: D of the model in use.
        names: the rows' names in error messages; None: their positions.

    Returns:
        float16 [K, 2, D].

    Raises:
        StateError: a row does not hold a state of this size; the message names it.
    """
    states = unpack_stored(packed, hidden_size, names)
    return states.to_float16() if isinstance(states, Int8States) else states


def unpack_stored(packed: Sequence[str], hidden_size: int, names: Sequence[object] | None = None) -> States:
    """`unpack` that leaves int8 as it is: Int8States where every row is of that format, else float16 [K, 2, D].

    `Encoder.rerank` and `readout` take either; int8 makes half the message.
    """
    if isinstance(packed, str):
        raise StateError("expected a list of packed states, got one text: pass [text]")
    names = range(len(packed)) if names is None else names
    formats = list(_formats(packed, hidden_size, names))
    if "int8" not in formats:
        return _float16_states(packed, hidden_size, names)
    if "float16" not in formats:
        return _int8_states(packed, hidden_size, names)
    states = np.empty((len(packed), 2, hidden_size), np.float16)
    for state_format in STATE_FORMATS:
        rows = [row for row, found in enumerate(formats) if found == state_format]
        states[rows] = unpack([packed[row] for row in rows], hidden_size, [names[row] for row in rows])
    return states


def _size(hidden_size: int, state_format: StateFormat) -> int:
    """Bytes of a state before base64."""
    if state_format == "float16":
        return 4 * hidden_size
    if state_format != "int8":
        known = " or ".join(STATE_FORMATS)
        raise InvalidInput(f"is {known}, got {shown(state_format)!r}", "state_format")
    if hidden_size < _LEAST_INT8:
        raise InvalidInput(f"int8 is for hidden sizes from {_LEAST_INT8}, got {hidden_size}", "state_format")
    return 4 * blocks_of(hidden_size) + 2 * hidden_size


def _formats_by_length(hidden_size: int) -> dict[int, StateFormat]:
    known = STATE_FORMATS if hidden_size >= _LEAST_INT8 else STATE_FORMATS[:1]
    return {text_length(hidden_size, state_format): state_format for state_format in known}


def _formats(packed: Sequence[str], hidden_size: int, names: Sequence[object]) -> Iterator[StateFormat]:
    by_length = _formats_by_length(hidden_size)
    for name, text in zip(names, packed, strict=True):
        if not text:
            raise StateError(f"row {name!r}: no state yet; store one, or leave such rows out by a filter")
        found = by_length.get(len(text)) if isinstance(text, str) else None
        if found is None:
            what = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            expected = " or ".join(f"{length} characters ({known})" for length, known in by_length.items())
            raise StateError(
                f"row {name!r}: expected {expected} for hidden size {hidden_size}, found {what}; "
                "was the row written with another model?"
            )
        yield found


def _float16_states(packed: Sequence[str], hidden_size: int, names: Sequence[object]) -> Float16Array:
    data = _decode(packed, _size(hidden_size, "float16"), names)
    states = np.frombuffer(data, dtype="<f2").reshape(len(packed), 2, hidden_size)
    _refuse(~np.isfinite(states), names, "the state holds NaN or infinity")
    return states.astype(np.float16, copy=False)


def _int8_states(packed: Sequence[str], hidden_size: int, names: Sequence[object]) -> Int8States:
    size, blocks = _size(hidden_size, "int8"), blocks_of(hidden_size)
    rows = np.frombuffer(_decode(packed, size, names), np.uint8).reshape(len(packed), size)
    scales = np.ascontiguousarray(rows[:, : 4 * blocks]).view("<f2").reshape(len(packed), 2, blocks)
    _refuse(wrong_scales(scales), names, "the state holds a scale that is NaN, negative or too large")
    values = np.ascontiguousarray(rows[:, 4 * blocks :]).view(np.int8).reshape(len(packed), 2, hidden_size)
    return Int8States(values, scales.astype(np.float16, copy=False))


def _refuse(wrong: npt.NDArray[np.bool_], names: Sequence[object], reason: str) -> None:
    """Raises StateError for the first row of [K, ...] in which something is wrong."""
    if wrong.any():
        row = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
        raise StateError(f"row {names[row]!r}: {reason}; insert the image again")


def _decode(packed: Sequence[str], size: int, names: Sequence[object]) -> bytes:
    """The bytes of all rows, `size` each."""
    data = _decode_joined(packed, size)
    if data is None:
        data = b"".join(_decode_row(name, text, size) for name, text in zip(names, packed, strict=True))
    return data


def _decode_joined(packed: Sequence[str], size: int) -> bytes | None:
    """Decodes all rows at once, several times faster than one by one; None where that is not possible.

    The joined text is valid base64 only where no row ends in padding, which needs a `size` divisible by 3.
    """
    if size % 3:
        return None
    try:
        data = base64.b64decode("".join(packed), validate=True)
    except ValueError:
        return None
    return data if len(data) == size * len(packed) else None


def _decode_row(name: object, text: str, size: int) -> bytes:
    """The bytes of one row.

    Raises:
        StateError: not base64, or not `size` bytes: texts of one length may differ in their padding.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise StateError(f"row {name!r}: not base64: {error}") from None
    if len(data) != size:
        raise StateError(f"row {name!r}: expected {size} bytes, found {len(data)}; insert the image again")
    return data
