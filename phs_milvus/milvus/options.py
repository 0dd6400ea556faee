"""How Milvus is to search: the arguments of MilvusClient.search that a search passes on, under the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phs_milvus.contract.errors import InvalidInput, shown

CONSISTENCY_LEVELS = ("Strong", "Session", "Bounded", "Eventually")
READ_TIMEOUT_S = 30.0

# Of `search_params`, what stands beside the index's own parameters.
_NOT_OF_THE_INDEX = ("metric_type", "hints", "ignore_growing", "round_decimal")


@dataclass(frozen=True)
class SearchOptions:
    """How Milvus is to search. Attributes are None, or empty, where Milvus or the collection decides.

    Attributes:
        partition_names: the partitions to search; empty: all.
        search_params: parameters of the index, as {"ef": 4000} or as {"params": {"ef": 4000}}.
        group_by_field: a field of the schema of whose values each is found once, with the row nearest to the query.
            Milvus 2.4 and later.
        consistency_level: "Strong" sees every row that was written before, for about 0.2 s more; "Session" those that
            this process wrote; "Bounded" all but the last seconds'; "Eventually" any state. None: the collection's own,
            and what this collection object wrote; where nothing at all is found, that is made sure by "Strong".
        timeout: seconds that a call may take; None: 30.

    Raises:
        InvalidInput: a value that Milvus cannot take; `.field` names it.
    """

    partition_names: Sequence[str] | None = None
    search_params: Mapping[str, Any] | None = None
    group_by_field: str | None = None
    consistency_level: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        names = self.partition_names
        if names is not None and (isinstance(names, str) or not all(isinstance(name, str) and name for name in names)):
            raise InvalidInput(f"is a list of names, got {shown(names)!r}", "partition_names")
        if self.search_params is not None:
            self._check_params(self.search_params)
        level = self.consistency_level
        if level is not None and level not in CONSISTENCY_LEVELS:
            raise InvalidInput(f"is {', '.join(CONSISTENCY_LEVELS)} or None, got {shown(level)!r}", "consistency_level")
        check_timeout(self.timeout)

    @staticmethod
    def _check_params(given: Any) -> None:
        params = given.get("params", {}) if isinstance(given, Mapping) else None
        if not isinstance(params, Mapping):
            raise InvalidInput(f'is a dict such as {{"ef": 4000}}, got {shown(given)}', "search_params")
        if "offset" in given or "offset" in params:
            raise InvalidInput("an offset would leave the best rows out before they are ranked", "search_params")

    def seconds(self) -> float:
        """The longest that a call may take."""
        return READ_TIMEOUT_S if self.timeout is None else self.timeout

    def params(self, limit: int, metric: str) -> dict[str, Any]:
        """`search_params` as pymilvus takes them, with our choice for HNSW where there is none.

        Args:
            metric: of the collection's index.

        Raises:
            InvalidInput: another metric is asked for: Milvus Lite would take it, and give distances for similarities.
        """
        given = dict(self.search_params or {})
        if given.get("metric_type", metric) != metric:
            raise InvalidInput(f"the index is by {metric}, not {shown(given['metric_type'])}", "search_params")
        # MilvusClient takes the index's parameters at both places.
        inner = given.pop("params", {})
        outer = {key: given.pop(key) for key in _NOT_OF_THE_INDEX if key in given}
        return {**outer, "params": {"ef": ef_for(limit), **given, **inner}}


def ef_for(limit: int) -> int:
    """How many rows HNSW is to keep in view for `limit` results; other indexes have no such parameter.

    It finds no more than that, and close to it not the nearest: of 100,000 clustered vectors 1.2 x limit found .91 of
    the nearest 1,000, 4 x limit .99 in half as much time again; for 10,000, twice the limit found .99. So we ask for
    three more for each result, up to 9,000 in all. A server takes at most 32,768.
    """
    return max(64, limit + 3 * min(limit, 3_000))


def check_timeout(timeout: float | None) -> None:
    """Raises InvalidInput unless it is a number of seconds, or None."""
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise InvalidInput(f"is a number of seconds above 0, or None, got {shown(timeout)!r}", "timeout")
