"""`AsyncFocusedSearch`: focused search for asyncio.

    search = AsyncFocusedSearch(FocusedSearch(collection, encoder), in_flight=8)
    result = await search.search("street.jpg", Box(40, 60, 180, 220), limit=10)
    result = await search.run(result.locate, "photos/")

It is the blocking search on a few threads, so that there is one search and not two. With pymilvus' AsyncMilvusClient,
which has no iterators, every stage and the layer over Milvus Lite and servers would be there twice; and a search spends
its time waiting for the network, which threads do as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from phs_milvus.contract.errors import InvalidInput
from phs_milvus.search.focused import FocusedSearch

P = ParamSpec("P")
Result = TypeVar("Result")

DEFAULT_SEARCHES = 8


def _threaded(
    method: Callable[Concatenate[FocusedSearch, P], Result],
) -> Callable[Concatenate[AsyncFocusedSearch, P], Coroutine[Any, Any, Result]]:
    """A method of FocusedSearch, with all its arguments, as a coroutine."""

    @wraps(method)
    async def call(self: AsyncFocusedSearch, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return await self.run(method, self.blocking, *args, **kwargs)

    return call


class AsyncFocusedSearch:
    """`FocusedSearch` for asyncio: the same methods as coroutines, with the same arguments, results and errors.

    At most `in_flight` searches run at a time; the others wait in the order in which they came. A search that is
    cancelled while it waits never begins. One that is cancelled while it runs is not heard of any more, and frees its
    place when it ends, at the latest by the timeouts of the encoder and of Milvus.

    Args:
        search: made before, because that asks the server for its model.
        in_flight: searches, each on a thread of its own.

    Attributes:
        blocking: the FocusedSearch.

    Raises:
        InvalidInput: `in_flight` is below 1.
    """

    def __init__(self, search: FocusedSearch, *, in_flight: int = DEFAULT_SEARCHES) -> None:
        if in_flight < 1:
            raise InvalidInput(f"is at least 1, got {in_flight}", "in_flight")
        self.blocking = search
        self._threads = ThreadPoolExecutor(in_flight, "phs-search")
        self._closed = False

    search = _threaded(FocusedSearch.search)
    search_many = _threaded(FocusedSearch.search_many)
    file_of = _threaded(FocusedSearch.file_of)

    async def run(self, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
        """Runs something else that blocks in the place of a search, such as `SearchResult.locate`.

        Raises:
            InvalidInput: this is closed; and what the function raises.
        """
        if self._closed:
            raise InvalidInput("is closed; search inside its `async with`", "search")
        call = partial(copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def close(self) -> None:
        """Takes no more searches, and waits for those that run or wait."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)

    async def __aenter__(self) -> AsyncFocusedSearch:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
