"""How much may be in progress at once, counted in images and in bytes, so that memory is bounded whatever is sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from phs_milvus.errors import EncoderBusy

# Bulk fills this share at most; the rest stays free for callers who are refused rather than made to wait.
_BULK_SHARE = 0.75


class Gate:
    """A gate in front of all queues. Belongs to one event loop; not thread-safe.

    Attributes:
        images, bytes: in progress now.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.images = 0
        self.bytes = 0

    @asynccontextmanager
    async def admitted(self, size: int, wait: bool) -> AsyncIterator[None]:
        """One image of `size` bytes is in progress within it.

        Args:
            wait: bulk: wait for room, in order of arrival, instead of raising. One item of any size is let into an
                empty server.

        Raises:
            EncoderBusy: no room, and not `wait`.
        """
        if wait:
            await self._wait(size)
        elif self._fits(size, 1.0):
            self._add(size)
        else:
            raise EncoderBusy(
                f"{self.images} images of {self.bytes} bytes are in progress; the limits are {self._max_images} "
                f"images and {self._max_bytes} bytes; try again in a moment"
            )
        try:
            yield
        finally:
            self._remove(size)

    async def _wait(self, size: int) -> None:
        if not self._waiting and self._fits(size, _BULK_SHARE):
            self._add(size)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((size, turn))
                self._admit_waiting()
            else:  # it was admitted just before it was cancelled
                self._remove(size)
            raise

    def _fits(self, size: int, share: float) -> bool:
        if not self.images:
            return True
        return self.images + 1 <= share * self._max_images and self.bytes + size <= share * self._max_bytes

    def _add(self, size: int) -> None:
        self.images += 1
        self.bytes += size

    def _remove(self, size: int) -> None:
        self.images -= 1
        self.bytes -= size
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0], _BULK_SHARE):
            size, turn = self._waiting.popleft()
            self._add(size)
            turn.set_result(None)
