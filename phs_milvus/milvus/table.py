"""A Milvus collection as a table of plain records, with the same behaviour on Milvus Lite and on servers.

The differences between the two were found by experiment with milvus-lite 3.2 and Milvus 2.3.5. Those in creating and
connecting are dealt with in creation.py and connection.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from phs_milvus.contract.errors import CollectionError, InvalidInput, MilvusUnavailable, PhsError, shown
from phs_milvus.milvus.connection import LoadState, MilvusClient, check_server, is_lite, message_of, translated_errors
from phs_milvus.milvus.options import READ_TIMEOUT_S, SearchOptions
from phs_milvus.milvus.rows import Id, batches, literal

T = TypeVar("T")

# A proxy takes messages of 64 MiB in, and fails on answers of about 100 MB.
BYTES_PER_CALL = 32 * 2**20
BYTES_PER_ANSWER = 64 * 2**20
ROWS_PER_CALL = 500

# Of one read. Each waits for the present, about 0.2 s on a server, so small pages take long: 1,000 ids at a time are
# read at 2,500 rows/s, 8,000 at 13,000.
IDS_PER_PAGE = 8192
_IDS_OF_ANY_SIZE = 512  # of which the fields are never too much for one answer: Milvus takes 64 KiB a row
_WRITE_TIMEOUT_S = 120.0
_LOAD_TIMEOUT_S = 300.0
_PAUSE_S = 1.0
STRONG = "Strong"


class Table:
    """Reads and writes one loaded collection. Every method raises CollectionError with Milvus' message.

    Attributes:
        key: name of the primary key field.
        patience: seconds to go on trying while Milvus does not answer.
        tell: called once in each such time, with what happened and how long it is waited for.
        all_visible: False where another process may have written a moment ago what the first read must see.
    """

    def __init__(self, client: MilvusClient, name: str, key: str, *, all_visible: bool = True) -> None:
        self.key = key
        self.patience = 0.0
        self.tell: Callable[[str], None] | None = None
        self._client = client
        self._name = name
        self._lite = is_lite(client)
        # A server reads a snapshot that may be seconds old, so the first read after a write of ours asks for the
        # current state.
        self._writes, self._writes_seen = (0 if all_visible else 1), 0
        self._partitions: frozenset[str] = frozenset()
        with translated_errors(f"cannot load collection {name!r}"):
            # Milvus Lite needs it after every reopen. On a server, what is loaded is its owner's business, who may have
            # loaded it in replicas, or some of its partitions.
            if self._lite or client.get_load_state(name)["state"] != LoadState.Loaded:
                client.load_collection(name, timeout=_LOAD_TIMEOUT_S)

    def insert(self, records: list[dict[str, Any]]) -> None:
        """Adds records; if an id exists already, a server stores it twice."""
        # Never tried again: it may have been done, and only the answer lost.
        with translated_errors(f"cannot write to collection {self._name!r}"):
            self._client.insert(self._name, records, timeout=_WRITE_TIMEOUT_S)
        self._writes += 1

    def upsert(self, records: list[dict[str, Any]]) -> None:
        """Adds or replaces records."""
        # Lite's upsert would keep old dynamic fields; its insert, where its upsert ends, replaces all.
        call = self._client.insert if self._lite else self._client.upsert
        self._patiently("write to", lambda: call(self._name, records, timeout=_WRITE_TIMEOUT_S))
        self._writes += 1

    def delete(self, ids: Sequence[Id]) -> None:
        """Deletes records by id."""
        among = self._among(ids)
        self._patiently("delete from", lambda: self._client.delete(self._name, filter=among, timeout=_WRITE_TIMEOUT_S))
        self._writes += 1

    def flush(self) -> None:
        """Seals and indexes new records."""
        self._patiently("flush", lambda: self._client.flush(self._name, timeout=_WRITE_TIMEOUT_S))

    def wait_until_indexed(self, field: str) -> None:
        """Returns when every sealed record's vector is in the index of that field; on Milvus Lite at once."""
        while not self._lite and self._patiently("describe", lambda: self._pending(field)):
            time.sleep(_PAUSE_S)

    def _pending(self, field: str) -> int:
        """Sealed records that are not in the index of a field yet."""
        found = [self._client.describe_index(self._name, name) for name in self._client.list_indexes(self._name, field)]
        return sum(int(one.get("pending_index_rows") or 0) for one in found)

    def partitions(self) -> list[str]:
        """The names of the partitions; of a collection with a partition key they are Milvus' own."""
        return list(self._patiently("read", lambda: self._client.list_partitions(self._name)))

    def _patiently(self, doing: str, call: Callable[[], T]) -> T:
        """`call()`; again, for at most `patience` seconds, while Milvus does not answer."""
        until, told = time.monotonic() + self.patience, False
        while True:
            try:
                with translated_errors(f"cannot {doing} collection {self._name!r}"):
                    return call()
            except MilvusUnavailable as error:
                if time.monotonic() >= until:
                    raise
                if self.tell is not None and not told:
                    told = True
                    self.tell(f"{error}; trying again for {self.patience:g} s")
                time.sleep(_PAUSE_S)

    def count(self) -> int:
        """The current number of records."""
        return int(self._query("", ["count(*)"], STRONG)[0]["count(*)"])

    def is_empty(self) -> bool:
        """Whether there are no records at present."""
        # Any state with a record in it is answer enough, and has not to be waited for.
        return not self._query("", [self.key], "Eventually", limit=1) and not self.count()

    def get(
        self,
        ids: Sequence[Id],
        names: Sequence[str],
        row_bytes: int,
        level: str | None = STRONG,
        timeout: float = READ_TIMEOUT_S,
    ) -> list[dict[str, Any]]:
        """Records with their keys, in the order of `ids`; ids that do not exist are left out.

        Args:
            row_bytes: what a record weighs in an answer, as far as is known beforehand.
            level: of consistency; None: the collection's own, which does not wait for what others wrote a moment ago,
                but after a write of ours Strong.
        """
        level, writes = level or self._default_level(), self._writes
        found: dict[Id, dict[str, Any]] = {}
        for page in batches([row_bytes + len(str(key)) for key in ids], IDS_PER_PAGE, BYTES_PER_CALL):
            found |= {row[self.key]: row for row in self._page(ids[page], [*names, self.key], level, timeout)}
        if level == STRONG:
            self._writes_seen = writes
        return [found[key] for key in ids if key in found]

    def _page(self, ids: Sequence[Id], names: list[str], level: str | None, timeout: float) -> list[dict[str, Any]]:
        try:
            return self._query(self._among(ids), names, level, timeout)
        except MilvusUnavailable:
            raise
        except CollectionError:
            # A server refuses answers of about 100 MB, and what the caller's own fields weigh is not known.
            if len(ids) <= _IDS_OF_ANY_SIZE:
                raise
            half = len(ids) // 2
            return [row for part in (ids[:half], ids[half:]) for row in self._page(part, names, level, timeout)]

    def _default_level(self) -> str | None:
        return STRONG if self._lite or self._writes > self._writes_seen else None

    def sample(self, names: Sequence[str], count: int) -> list[dict[str, Any]]:
        """At most `count` records, whichever Milvus gives first."""
        return self._query("", list(names), STRONG, limit=count)

    def iterate_keys(self, after: Id | None = None, filter: str = "", timeout: float = READ_TIMEOUT_S) -> Iterator[Id]:
        """All ids in ascending order, a page at a time: those after one, and of the records that a filter takes.

        Raises:
            InvalidInput: Milvus refuses the filter.
        """
        # Each page starts after the last id of the page before it. pymilvus' own iterator does the same, but does not
        # escape that id. The options make Milvus sort the records before it applies the limit.
        options: dict[str, Any] = {"iterator": "True", "reduce_stop_for_best": "True", "limit": IDS_PER_PAGE}
        # With these options pymilvus drops the consistency level; counting first makes the server catch up.
        self.count()
        if filter:
            self._check_filter(filter, timeout)
        while page := [
            row[self.key] for row in self._query(self._following(after, filter), [self.key], STRONG, timeout, **options)
        ]:
            if page != sorted(page):
                raise CollectionError("Milvus does not return ids in order; Milvus Lite must be 3.2.1 or later")
            yield from page
            after = page[-1]

    def _following(self, after: Id | None, filter: str) -> str:
        """The filter of the records that it takes and that come after an id."""
        if after is None:
            return filter
        condition = f"{self.key} > {literal(after)}"
        return f"({filter}) and {condition}" if filter else condition

    def _check_filter(self, filter: str, timeout: float) -> None:
        """Raises InvalidInput where Milvus does not take it; the collection itself was read just now."""
        try:
            self._query(filter, [self.key], "Eventually", timeout, limit=1)
        except MilvusUnavailable:
            raise
        except CollectionError as error:
            reason = message_of(error.__cause__ or error)
            raise InvalidInput(
                f"Milvus does not take the filter {shown(filter)!r}: {shown(reason)}", "filter"
            ) from None

    def search(
        self,
        field: str,
        queries: list[Any],
        limit: int,
        filter: str,
        names: list[str],
        params: dict[str, Any],
        options: SearchOptions,
    ) -> list[Any]:
        """pymilvus' hits for each query.

        Args:
            params: `SearchOptions.params`.

        Raises:
            InvalidInput: Milvus refuses the filter or one of the options; `.field` names it.
        """
        if options.group_by_field is not None:
            check_server(self._client, (2, 4), "grouping", "group_by_field")
        if options.partition_names:
            self._check_partitions(options.partition_names)
        arguments: dict[str, Any] = {
            "anns_field": field,
            "data": queries,
            "limit": limit,
            "filter": filter,
            "output_fields": names,
            "search_params": params,
            "timeout": options.seconds(),
            "partition_names": list(options.partition_names or []) or None,
            **({"group_by_field": options.group_by_field} if options.group_by_field else {}),
        }
        level, writes = options.consistency_level or self._default_level(), self._writes
        try:
            hits = self._search(arguments, level)
            # No hits may mean that another client's rows are not visible yet.
            if level is None and not any(map(len, hits)):
                level, hits = STRONG, self._search(arguments, STRONG)
        except MilvusUnavailable:
            raise
        except CollectionError as error:
            raise self._blamed(arguments, options, error) from error.__cause__
        if level == STRONG:
            self._writes_seen = writes
        return hits

    def _search(self, arguments: dict[str, Any], level: str | None) -> list[Any]:
        consistency = {} if level is None else {"consistency_level": level}
        return self._patiently("search", lambda: list(self._client.search(self._name, **arguments, **consistency)))

    def _blamed(self, arguments: dict[str, Any], options: SearchOptions, error: CollectionError) -> PhsError:
        """InvalidInput for the one argument without which the search works, else `error`; codes differ by version."""
        asked = {
            "filter": (arguments["filter"], ""),
            "partition_names": (options.partition_names, None),
            "group_by_field": (options.group_by_field, None),
            "search_params": (options.search_params, SearchOptions().params(arguments["limit"], "")),
        }
        for name, (value, neutral) in asked.items():
            if not value:
                continue
            try:
                self._search({**arguments, "limit": 1, name: neutral}, "Eventually")
            except CollectionError:
                continue
            reason = message_of(error.__cause__ or error)
            return InvalidInput(f"Milvus does not take the {name} {shown(value)!r}: {shown(reason)}", name)
        return error

    def _check_partitions(self, names: Sequence[str]) -> None:
        """Raises InvalidInput for a partition that is not there, which Milvus Lite takes for an empty one."""
        if self._partitions.issuperset(names):
            return
        self._partitions = frozenset(self.partitions())
        if missing := [name for name in names if name not in self._partitions]:
            there = shown(", ".join(sorted(self._partitions)))
            raise InvalidInput(
                f"collection {self._name!r} has no partition {shown(missing[0])!r}; there are: {there}",
                "partition_names",
            )

    def _query(
        self,
        filter: str,
        names: list[str],
        level: str | None,
        timeout: float = READ_TIMEOUT_S,
        **options: Any,
    ) -> list[dict[str, Any]]:
        arguments = {"filter": filter, "output_fields": names, "timeout": timeout, **options}
        if level is not None:
            arguments["consistency_level"] = level
        return [dict(row) for row in self._patiently("read", lambda: self._client.query(self._name, **arguments))]

    def _among(self, ids: Sequence[Id]) -> str:
        # pymilvus' own get and delete by ids do not escape them.
        return f"{self.key} in [{', '.join(map(literal, ids))}]"
