"""What the retrievers of all frameworks do: a search whose hits become documents."""

from __future__ import annotations

from typing import Any

from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.hits import Hit
from phs_milvus.search.queries import Question

# Of the search that found a document, and wrong as soon as somebody ranks it anew; frameworks keep scores elsewhere.
_OF_ONE_RANKING = {"score", "rank", "ann_rank", "query_db_rank"}


def find(search: FocusedSearch, question: Question, **options: Any) -> list[tuple[Hit, dict[str, Any]]]:
    """The hits of a search, best first, each with its metadata: its id, its fields, its named scores and its boxes.

    Takes and raises what `FocusedSearch.search` does; output_fields are all fields unless said otherwise.
    """
    (result,) = search.search_many([question], **{"output_fields": ["*"], **options})
    rows = result.rows()
    return [
        (hit, {name: value for name, value in row.items() if name not in _OF_ONE_RANKING})
        for hit, row in zip(result, rows, strict=True)
    ]
