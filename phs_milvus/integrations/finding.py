"""What the retrievers of all frameworks do: a search whose hits become documents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

from phs_milvus.search.aio import AsyncFocusedSearch
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.hits import Hit
from phs_milvus.search.queries import Question

# Of the search that found a document, and wrong as soon as somebody ranks it anew; frameworks keep scores elsewhere.
_OF_ONE_RANKING = {"score", "rank", "ann_rank", "query_db_rank"}


P = ParamSpec("P")
Result = TypeVar("Result")

# An AsyncFocusedSearch bounds how many of a framework's asynchronous calls search at a time.
Searches: TypeAlias = FocusedSearch | AsyncFocusedSearch


def find(search: Searches, question: Question, **options: Any) -> list[tuple[Hit, dict[str, Any]]]:
    """The hits of a search, best first, each with its metadata: its id, its fields, its named scores and its boxes.

    Takes and raises what `FocusedSearch.search` does; output_fields are all but vectors unless said otherwise.
    """
    blocking = search.blocking if isinstance(search, AsyncFocusedSearch) else search
    (result,) = blocking.search_many([question], **{"output_fields": ["*"], **options})
    rows = result.rows()
    return [
        (hit, {name: value for name, value in row.items() if name not in _OF_ONE_RANKING})
        for hit, row in zip(result, rows, strict=True)
    ]


async def on_thread(search: Searches, function: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """A function that searches, as a coroutine: on a thread of an AsyncFocusedSearch, else on any."""
    if isinstance(search, AsyncFocusedSearch):
        return await search.run(function, *args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
