"""`ingest_folder` and `backfill` for asyncio: the same, on a thread of their own, which a cancelled task stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from phs_milvus.ingest.backfill import backfill
from phs_milvus.ingest.folder import ingest_folder

P = ParamSpec("P")
Report = TypeVar("Report")


class _Stop(threading.Event):
    """Is set where the caller's event is, which others may share, or where it was set itself."""

    def __init__(self, given: threading.Event | None) -> None:
        super().__init__()
        self._given = given

    def is_set(self) -> bool:
        return super().is_set() or (self._given is not None and self._given.is_set())


def _stoppable(function: Callable[P, Report]) -> Callable[P, Coroutine[Any, Any, Report]]:
    """A blocking function that takes `stop`, with all its arguments, as a coroutine.

    Cancelling the coroutine stops the function, and it alone, and waits until it has ended.
    """

    @wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> Report:
        given: Any = kwargs.get("stop")
        kwargs["stop"] = stop = _Stop(given)
        thread = ThreadPoolExecutor(1, "phs-ingest")
        running = asyncio.wrap_future(thread.submit(partial(copy_context().run, function, *args, **kwargs)))
        thread.shutdown(wait=False)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([running])
            running.exception()  # nobody waits for it any more
            raise

    return call


ingest_folder_async = _stoppable(ingest_folder)
backfill_async = _stoppable(backfill)
