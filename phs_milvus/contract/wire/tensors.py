"""Tensors of the contract <-> NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput

_DTYPES: dict[Any, np.dtype] = {
    pb.DTYPE_FLOAT32: np.dtype("<f4"),
    pb.DTYPE_FLOAT16: np.dtype("<f2"),
    pb.DTYPE_INT8: np.dtype("i1"),
}
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}


def tensor_to_pb(array: npt.NDArray[Any]) -> pb.Tensor:
    """float32, float16 or int8 of any shape -> Tensor; what is of another type becomes float32."""
    code = _CODES.get(array.dtype.name, pb.DTYPE_FLOAT32)
    data = np.ascontiguousarray(array, dtype=_DTYPES[code]).tobytes()
    return pb.Tensor(dtype=code, shape=array.shape, data=data)


def tensor_from_pb(tensor: pb.Tensor, field: str, dtype: type, shape: Sequence[int | None]) -> npt.NDArray[Any]:
    """Tensor -> read-only array over the message's own bytes.

    Args:
        field: the name that errors use.
        dtype: np.float32, np.float16 or np.int8; values of another dtype are refused, not converted.
        shape: the expected shape, with None for dimensions of any size.

    Raises:
        InvalidInput: the dtype or the shape is another one, the number of bytes does not fit the shape, or a value is
            not finite.
    """
    found = _DTYPES.get(tensor.dtype)
    if found != np.dtype(dtype):
        name = pb.Dtype.Name(tensor.dtype) if tensor.dtype in pb.Dtype.values() else tensor.dtype
        raise InvalidInput(f"expected {np.dtype(dtype).name}, got dtype {name}", field)
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    if len(tensor.shape) > len(shape):  # not listed: a message can hold millions of sizes
        raise InvalidInput(f"expected shape [{wanted}], got {len(tensor.shape)} dimensions", field)
    actual = list(tensor.shape)
    if len(actual) != len(shape) or any(w is not None and w != a for w, a in zip(shape, actual, strict=True)):
        raise InvalidInput(f"expected shape [{wanted}], got {actual}", field)
    size = found.itemsize
    for length in actual:
        size *= length
    if len(tensor.data) != size:
        raise InvalidInput(f"shape {actual} needs {size} bytes, got {len(tensor.data)}", field)
    array = np.frombuffer(tensor.data, dtype=found).reshape(actual)
    if found.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput("holds NaN or infinity", field)
    return array
