"""The PHS state codec: float16 [2, D] <-> what a Milvus row holds.

A state is the pair (residual r, head outputs o) of docs/DESIGN.md, "The method": all that the readout needs, whatever
the query. Milvus Lite takes no half-precision vectors, and the 2.x servers take one vector field per collection only,
so a row holds the state as base64 text in a VARCHAR field: `text_length(D)` characters, for example 4,096 for D=768.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import StateError
from phs_milvus.contract.types import Float16Array

# A VARCHAR may be declared with up to 65,535 bytes.
MAX_HIDDEN_SIZE = 12_287


def text_length(hidden_size: int) -> int:
    """Characters of a packed state of hidden size D: 4 bytes per dimension, in base64."""
    return 4 * ((4 * hidden_size + 2) // 3)


def pack(state: npt.ArrayLike) -> str:
    """Encodes one state for a Milvus row.

    Args:
        state: [2, D] finite floats within float16's range; rounded to float16.

    Returns:
        base64 of the little-endian float16 values, row-major.

    Raises:
        StateError: the shape is another one, or a value is NaN or outside float16's range.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(state).astype("<f2")
    if array.ndim != 2 or array.shape[0] != 2 or array.shape[1] == 0:
        raise StateError(f"a state has shape [2, D], got {list(array.shape)}")
    if not np.isfinite(array).all():
        raise StateError("a state must be finite and within float16's range (±65504)")
    return base64.b64encode(array.tobytes()).decode("ascii")


def unpack(packed: Sequence[str], hidden_size: int, names: Sequence[object] | None = None) -> Float16Array:
    """Decodes the states of K rows.

    Args:
        packed: K texts made by `pack`.
        hidden_size: D of the model in use.
        names: the rows' names in error messages; None: their positions.

    Returns:
        float16 [K, 2, D].

    Raises:
        StateError: a row does not hold a state of this size; the message names the first such row.
    """
    if isinstance(packed, str):
        raise StateError("expected a list of packed states, got one text: pass [text]")
    expected = text_length(hidden_size)
    names = range(len(packed)) if names is None else names
    for name, text in zip(names, packed, strict=True):
        if not text:
            raise StateError(f"row {name!r}: no state yet; store one, or leave such rows out by a filter")
        if not isinstance(text, str) or len(text) != expected:
            found = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
            raise StateError(
                f"row {name!r}: expected {expected} characters for hidden size {hidden_size}, found {found}; "
                "was the row written with another model?"
            )
    data = _decode_joined(packed, 4 * hidden_size)
    if data is None:
        data = b"".join(_decode_row(name, text, 4 * hidden_size) for name, text in zip(names, packed, strict=True))
    states = np.frombuffer(data, dtype="<f2").reshape(len(packed), 2, hidden_size)
    finite = np.isfinite(states)
    if not finite.all():
        row = int(np.flatnonzero(~finite.all(axis=(1, 2)))[0])
        raise StateError(f"row {names[row]!r}: the state holds NaN or infinity; insert the image again")
    return states.astype(np.float16, copy=False)


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
