"""Pictures as browsers show them: upright JPEGs of a few sizes, whatever the file is, decoded in child processes.

Bytes of strangers never reach a decoder in this process or, unchanged, a browser.
"""

from __future__ import annotations

import io
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

from phs_milvus.contract.cost import cost_of
from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.headers import read_header
from phs_milvus.contract.types import Limits

# Longer side in pixels: a thumbnail, one for screens of twice the density, and the picture to point in, twice.
SIZES = (256, 512, 1600, 4096)
_QUALITY = 85
_CHILDREN = 2
_CACHE_BYTES = 64 * 2**20


class Renditions:
    """Draws pictures smaller and remembers what it drew; a context manager, which ends the children."""

    def __init__(self) -> None:
        self._idle: queue.Queue[Decoder] = queue.Queue()
        self._decoders = [Decoder() for _ in range(_CHILDREN)]
        for decoder in self._decoders:
            self._idle.put(decoder)
        self._drawn: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Renditions:
        return self

    def __exit__(self, *_: object) -> None:
        for decoder in self._decoders:
            decoder.close()

    def draw(self, key: str, size: int, read: Callable[[], bytes]) -> bytes:
        """A JPEG of the upright picture, its longer side `size` pixels at most.

        Args:
            key: names the file: equal keys have equal bytes.
            size: one of `SIZES`.
            read: returns the encoded file; not called where it was drawn before.

        Raises:
            ImageError: not a picture, too large, or not decodable.
        """
        with self._lock:
            if (known := self._drawn.get((key, size))) is not None:
                self._drawn.move_to_end((key, size))
                return known
        drawn = self._draw(read(), size)
        with self._lock:
            if (key, size) not in self._drawn:
                self._drawn[key, size] = drawn
                self._bytes += len(drawn)
            while self._bytes > _CACHE_BYTES:
                _, old = self._drawn.popitem(last=False)
                self._bytes -= len(old)
        return drawn

    @contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        decoder = self._idle.get()
        try:
            yield decoder
        finally:
            self._idle.put(decoder)

    def _draw(self, data: bytes, size: int) -> bytes:
        header = read_header(data)
        width, height = header.upright_size
        side = min(size, max(width, height))
        cost = cost_of(header, side, Limits.image_pixels)
        with self._decoder() as decoder:
            square = decoder.fitted(header, cost, side, Image.Resampling.BICUBIC)
        # The child squeezes into a square; here the shorter side gets its length.
        across, down = (max(1, round(side * edge / max(width, height))) for edge in (width, height))
        picture = Image.fromarray(square.transpose(1, 2, 0)).resize((across, down), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def size_of(text: str) -> int:
    """Reads one of `SIZES`.

    Raises:
        InvalidInput: another number.
    """
    if text not in map(str, SIZES):
        raise InvalidInput(f"must be one of {', '.join(map(str, SIZES))}, got {text[:20]!r}", "size")
    return int(text)
