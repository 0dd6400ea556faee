"""Waiting for a batcher's answer on an event loop, with its errors as ours."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

from phs_milvus.contract.errors import DeadlineExceeded, EncoderBusy, ServerDraining
from phs_server.flow.batcher import Batcher, Closed, Completed, Expired, QueueFull

Item = TypeVar("Item")
Result = TypeVar("Result")


def deadline_of(timeout: float | None) -> float | None:
    """time.monotonic() seconds at which so many seconds from now are over; None: never."""
    return None if timeout is None else time.monotonic() + timeout


async def answered(
    batcher: Batcher[Item, Result], item: Item, deadline: float | None, **options: Any
) -> Completed[Result]:
    """Submits to a batcher and awaits the answer, with the batcher's errors as ours."""
    try:
        # The future in no variable: it holds its exception, whose traceback holds this frame, a circle that would keep
        # the request's bytes until Python collects its oldest generation, hundreds of MiB later.
        return await asyncio.wrap_future(batcher.submit(item, deadline, **options))
    except asyncio.CancelledError:
        batcher.drop_unwanted()  # what nobody waits for holds no memory until its turn
        raise
    except QueueFull as error:
        raise EncoderBusy(str(error)) from None
    except Expired as error:
        raise DeadlineExceeded(str(error)) from None
    except Closed as error:
        raise ServerDraining(str(error)) from None
