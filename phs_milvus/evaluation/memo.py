"""Score matrices kept for a while: many settings are sums of the same few."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from phs_milvus.contract.types import Float32Array


class Memo:
    """The last matrices that were asked for, at most `most_bytes` of them."""

    def __init__(self, most_bytes: int = 2**28) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, Float32Array] = OrderedDict()

    def once(self, key: Hashable, compute: Callable[[], Float32Array]) -> Float32Array:
        """What `compute` returned when this key was last asked for, or returns now. Not to be written to."""
        if key not in self._kept:
            self._kept[key] = compute()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(array.nbytes for array in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)
        return self._kept[key]
