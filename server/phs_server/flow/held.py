"""What enters the last layer, kept for pictures that were just encoded: a further prompt then costs no trunk.

Everything before the last attention is independent of the prompt (docs/DESIGN.md, "Beyond the paper"). Entries belong
to the caller who sent the picture, so that nobody learns what others sent.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from torch import Tensor

from phs_milvus.contract.types import Region


class Key(NamedTuple):
    """owner: who sent the picture; digest: sha256 of its bytes; region: the crop, None for the whole image."""

    owner: str
    digest: bytes
    region: Region | None


class Held(NamedTuple):
    """tokens: [T, D] in 2 bytes a number, on the device that made them; width, height: the upright image in pixels."""

    tokens: Tensor
    width: int
    height: int


class HeldPictures:
    """A least-recently-used store, bounded in bytes. Thread-safe.

    Args:
        limit: bytes of tokens; 0 holds nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, Held] = OrderedDict()
        # How many entries each picture has, and its size.
        self._pictures: dict[tuple[str, bytes], tuple[int, tuple[int, int]]] = {}
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Tensor | None:
        """The tokens that are held under a key, which is then the most recently used."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key].tokens

    def size_of(self, owner: str, digest: bytes) -> tuple[int, int] | None:
        """Width and height of a picture, of which at least a part is held."""
        with self._lock:
            picture = self._pictures.get((owner, digest))
        return picture and picture[1]

    def put(self, key: Key, held: Held) -> None:
        """Holds tokens in place of those used longest ago; not where they alone are over the limit."""
        if held.tokens.nbytes > self.limit:
            return
        with self._lock:
            if key in self._entries:
                self._count(key, self._entries.pop(key), -1)
            self._entries[key] = held
            self._count(key, held, 1)
            while self.bytes_held > self.limit:
                self._count(*self._entries.popitem(last=False), -1)

    def _count(self, key: Key, held: Held, change: int) -> None:
        picture = (key.owner, key.digest)
        self.bytes_held += change * held.tokens.nbytes
        entries = self._pictures.get(picture, (0,))[0] + change
        self._pictures[picture] = (entries, (held.width, held.height))
        if not entries:
            del self._pictures[picture]
