"""How much may be in progress at once, counted in images and in bytes, so that memory is bounded whatever is sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from phs_milvus.contract.errors import EncoderBusy

# Bulk holds this share at most; the rest stays free for callers who are refused rather than made to wait.
_BULK_SHARE = 0.75


class Gate:
    """A gate in front of all queues. Belongs to one event loop; not thread-safe.

    Bulk that waits gets whatever becomes free until it holds its share, so that neither kind can starve the other.

    Attributes:
        images, bytes: in progress now.
        waiting: bulk images that wait for room.
    """

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._bulk_images = 0
        self._bulk_bytes = 0
        self.images = 0
        self.bytes = 0

    @property
    def waiting(self) -> int:
        return sum(not turn.cancelled() for _, turn in self._waiting)

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
        elif self._fits(size):
            self._add(size, bulk=False)
        else:
            raise EncoderBusy(
                f"{self.images} images of {self.bytes} bytes are in progress; the limits are {self._max_images} "
                f"images and {self._max_bytes} bytes; try again in a moment"
            )
        try:
            yield
        finally:
            self._remove(size, bulk=wait)

    async def _wait(self, size: int) -> None:
        if not self._waiting and self._bulk_fits(size):
            self._add(size, bulk=True)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit_waiting()
            else:  # it was admitted just before it was cancelled
                self._remove(size, bulk=True)
            raise

    def _fits(self, size: int) -> bool:
        return not self.images or (self.images < self._max_images and self.bytes + size <= self._max_bytes)

    def _bulk_fits(self, size: int) -> bool:
        images, total = self._bulk_images + 1, self._bulk_bytes + size
        has_share = images <= _BULK_SHARE * self._max_images and total <= _BULK_SHARE * self._max_bytes
        return self._fits(size) and (has_share or not self._bulk_images)

    def _add(self, size: int, bulk: bool) -> None:
        self.images += 1
        self.bytes += size
        self._bulk_images += bulk
        self._bulk_bytes += bulk * size

    def _remove(self, size: int, bulk: bool) -> None:
        self.images -= 1
        self.bytes -= size
        self._bulk_images -= bulk
        self._bulk_bytes -= bulk * size
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            # A stream that ends cancels its items together: some of them wait here when others leave.
            if not turn.cancelled():
                if not self._bulk_fits(size):
                    return
                self._add(size, bulk=True)
                turn.set_result(None)
            self._waiting.popleft()
