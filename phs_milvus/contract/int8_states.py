"""PHS states in a quarter of float32's space: int8 numbers, and one float16 scale for every 64 of them.

    x  ~  value * scale        the residual's D numbers and the head outputs' D numbers in blocks of their own

The last block of each is shorter where D is no multiple of 64. benchmarks/quality says what the rounding costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import StateError

BLOCK = 64
# The largest scale: -128 times it is the last number within float16's range.
MAX_SCALE = np.float16(511.75)
_MOST = 127


@dataclass(frozen=True, eq=False)
class Int8States:
    """K states. `len` is K; indexing by a slice or an array of rows gives those.

    Attributes:
        values: int8 [K, 2, D]: residual, head outputs.
        scales: float16 [K, 2, ceil(D / 64)], each from 0 to 511.75.

    Raises:
        StateError: other shapes or types. Scales are checked where they are read (`wrong_scales`).
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]

    def __post_init__(self) -> None:
        if self.values.dtype != np.int8 or self.values.ndim != 3 or self.values.shape[1] != 2:
            raise StateError(f"values are int8 [K, 2, D], got {self.values.dtype.name} {list(self.values.shape)}")
        expected = (len(self.values), 2, blocks_of(self.hidden_size))
        if self.scales.dtype != np.float16 or self.scales.shape != expected:
            raise StateError(
                f"scales are float16 {list(expected)} for values {list(self.values.shape)}, "
                f"got {self.scales.dtype.name} {list(self.scales.shape)}"
            )

    @classmethod
    def of(cls, states: npt.NDArray[np.float16]) -> Int8States:
        """Rounds float16 [K, 2, D], finite. A block's largest number becomes 127 or -127."""
        count, pair, hidden = states.shape
        padded = np.zeros((count, pair, blocks_of(hidden) * BLOCK), np.float32)
        padded[..., :hidden] = states
        blocks = padded.reshape(count, pair, -1, BLOCK)
        scales = _rounded_up(np.abs(blocks).max(axis=-1) / _MOST)
        steps = np.where(scales > 0, scales, 1).astype(np.float32)[..., None]
        values = np.rint(blocks / steps).clip(-_MOST, _MOST).astype(np.int8)
        return cls(np.ascontiguousarray(values.reshape(count, pair, -1)[..., :hidden]), scales)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.values.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.values.nbytes + self.scales.nbytes)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> Int8States:
        return Int8States(self.values[rows], self.scales[rows])

    def to_float16(self) -> npt.NDArray[np.float16]:
        """float16 [K, 2, D]: value * scale, rounded once."""
        states = self.values.astype(np.float32)
        states *= np.repeat(self.scales.astype(np.float32), BLOCK, axis=-1)[..., : self.hidden_size]
        return states.astype(np.float16)


def blocks_of(hidden_size: int) -> int:
    """How many scales D numbers have: ceil(D / 64)."""
    return -(-hidden_size // BLOCK)


def wrong_scales(scales: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    """Which scales no state has: NaN, negative, or so large that a state would leave float16's range."""
    wrong: npt.NDArray[np.bool_] = ~((scales >= 0) & (scales <= MAX_SCALE))
    return wrong


def _rounded_up(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """float32 -> float16: up, or the smallest ones, of which float16 has few, would cut a block's largest number."""
    nearest = scales.astype(np.float16)
    above = np.where(nearest < scales, np.nextafter(nearest, np.float16(np.inf)), nearest)
    return np.minimum(above, MAX_SCALE)
