"""Where stage one of a search finds its rows.

ann     nearest neighbours in Milvus
scan    every state in the server's file (phs_milvus.search.scanning)
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.milvus.options import SearchOptions

StageOne: TypeAlias = Literal["ann", "scan"]
STAGES_ONE: tuple[StageOne, ...] = get_args(StageOne)


def check_scan(stage_one: str, score: str, options: SearchOptions) -> None:
    """Raises InvalidInput unless there is such a stage one, and it can do what is asked for."""
    if stage_one not in STAGES_ONE:
        raise InvalidInput(f"must be one of {', '.join(STAGES_ONE)}, got {shown(stage_one)!r}", "stage_one")
    if stage_one == "ann":
        return
    if score == "ann":
        raise InvalidInput("'scan' is for the scores blend and query_db; ann is Milvus' own", "stage_one")
    for name in ("partition_names", "search_params", "group_by_field"):
        if getattr(options, name):
            raise InvalidInput("is for the nearest neighbours in Milvus; leave it out where stage_one is 'scan'", name)
