"""A Milvus collection as a table of plain records, with the same behaviour on Milvus Lite and on servers.

The differences between the two were found by experiment with milvus-lite 3.2 and Milvus 2.3.5. Those in creating and
connecting are dealt with in creation.py and connection.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from phs_milvus.contract.errors import CollectionError, InvalidInput, MilvusUnavailable, shown
from phs_milvus.contract.types import Float32Array
from phs_milvus.milvus.connection import MilvusClient, check_server, is_lite, message_of, translated_errors
from phs_milvus.milvus.options import READ_TIMEOUT_S, SearchOptions
from phs_milvus.milvus.rows import Id, batches, literal

# A proxy takes messages of 64 MiB in, and fails on answers of about 100 MB.
BYTES_PER_CALL = 32 * 2**20
BYTES_PER_ANSWER = 64 * 2**20
ROWS_PER_CALL = 500

# Of one read. Each waits for the present, about 0.2 s on a server, so small pages take long: 1,000 ids at a time are
# read at 2,500 rows/s, 8,000 at 13,000.
IDS_PER_PAGE = 8192
_WRITE_TIMEOUT_S = 120.0
_LOAD_TIMEOUT_S = 300.0
_STRONG = "Strong"
_PASSED_ON = ("partition_names", "group_by_field")


class Table:
    """Reads and writes one loaded collection. Every method raises CollectionError with Milvus' message.

    Attributes:
        key: name of the primary key field.
    """

    def __init__(self, client: MilvusClient, name: str, key: str) -> None:
        self.key = key
        self._client = client
        self._name = name
        self._lite = is_lite(client)
        # A server searches a snapshot that may be seconds old, so the first search after a write of ours asks for the
        # current state.
        self._writes = self._writes_searched = 0
        self._partitions: frozenset[str] = frozenset()
        with translated_errors(f"cannot load collection {name!r}"):
            client.load_collection(name, timeout=_LOAD_TIMEOUT_S)  # Milvus Lite needs this after every reopen

    def insert(self, records: list[dict[str, Any]]) -> None:
        """Adds records; if an id exists already, a server stores it twice."""
        self._write(self._client.insert, records)

    def upsert(self, records: list[dict[str, Any]]) -> None:
        """Adds or replaces records."""
        # Lite's upsert would keep old dynamic fields; its insert, where its upsert ends, replaces all.
        self._write(self._client.insert if self._lite else self._client.upsert, records)

    def _write(self, call: Any, records: list[dict[str, Any]]) -> None:
        with translated_errors(f"cannot write to collection {self._name!r}"):
            call(self._name, records, timeout=_WRITE_TIMEOUT_S)
        self._writes += 1

    def delete(self, ids: Sequence[Id]) -> None:
        """Deletes records by id."""
        with translated_errors(f"cannot delete from collection {self._name!r}"):
            self._client.delete(self._name, filter=self._among(ids), timeout=_WRITE_TIMEOUT_S)
        self._writes += 1

    def flush(self) -> None:
        """Seals and indexes new records."""
        with translated_errors(f"cannot flush collection {self._name!r}"):
            self._client.flush(self._name, timeout=_WRITE_TIMEOUT_S)

    def count(self) -> int:
        """The current number of records."""
        return int(self._query("", ["count(*)"], _STRONG)[0]["count(*)"])

    def is_empty(self) -> bool:
        """Whether there are no records at present."""
        # Any state with a record in it is answer enough, and has not to be waited for.
        return not self._query("", [self.key], "Eventually", limit=1) and not self.count()

    def get(
        self, ids: Sequence[Id], names: Sequence[str], row_bytes: int, options: SearchOptions
    ) -> list[dict[str, Any]]:
        """Records with their keys, in the order of `ids`; ids that do not exist at present are left out.

        Args:
            row_bytes: what a record weighs in an answer, as far as is known beforehand.
            options: of these the consistency level, None as for a search, and the timeout.
        """
        level = options.consistency_level or self._default_level()
        found = self._records(ids, names, row_bytes, level, options.seconds())
        if level is None and (missing := [key for key in ids if key not in found]):
            found |= self._records(missing, names, row_bytes, _STRONG, options.seconds())
        return [found[key] for key in ids if key in found]

    def _records(
        self, ids: Sequence[Id], names: Sequence[str], row_bytes: int, level: str | None, timeout: float
    ) -> dict[Id, dict[str, Any]]:
        found: dict[Id, dict[str, Any]] = {}
        sizes = [row_bytes + len(str(key)) for key in ids]
        for page in batches(sizes, IDS_PER_PAGE, BYTES_PER_CALL):
            rows = self._query(self._among(ids[page]), [*names, self.key], level, timeout)
            found |= {row[self.key]: row for row in rows}
        return found

    def _default_level(self) -> str | None:
        """The consistency of a read for which none was asked; None: the collection's own."""
        return _STRONG if self._lite or self._writes > self._writes_searched else None

    def sample(self, name: str, count: int) -> Float32Array:
        """float32 [n, E]: the vectors of at most `count` records, whichever Milvus gives first."""
        vectors = [row[name] for row in self._query("", [name], _STRONG, limit=count)]
        return np.array(vectors, np.float32).reshape(len(vectors), -1) if vectors else np.empty((0, 0), np.float32)

    def iterate_keys(self) -> Iterator[Id]:
        """All ids in ascending order, a page at a time."""
        # Each page starts after the last id of the page before it. pymilvus' own iterator does the same, but does not
        # escape that id. The options make Milvus sort the records before it applies the limit.
        options = {"iterator": "True", "reduce_stop_for_best": "True", "limit": IDS_PER_PAGE}
        condition = ""
        # With these options pymilvus drops the consistency level; counting first makes the server catch up.
        self.count()
        while page := [row[self.key] for row in self._query(condition, [self.key], _STRONG, **options)]:
            if page != sorted(page):
                raise CollectionError("Milvus does not return ids in order; Milvus Lite must be 3.2.1 or later")
            yield from page
            condition = f"{self.key} > {literal(page[-1])}"

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
            **{name: value for name in _PASSED_ON if (value := getattr(options, name))},
        }
        level, writes = options.consistency_level or self._default_level(), self._writes
        try:
            hits = self._search(arguments, level)
            # No hits may mean that another client's rows are not visible yet.
            if level is None and not any(map(len, hits)):
                level, hits = _STRONG, self._search(arguments, _STRONG)
        except MilvusUnavailable:
            raise
        except CollectionError as error:
            self._blame(arguments, options, message_of(error.__cause__ or error))
            raise
        if level == _STRONG:
            self._writes_searched = writes
        return hits

    def _search(self, arguments: dict[str, Any], level: str | None) -> list[Any]:
        consistency = {} if level is None else {"consistency_level": level}
        with translated_errors(f"cannot search collection {self._name!r}"):
            hits: list[Any] = self._client.search(self._name, **arguments, **consistency)
            return hits

    def _blame(self, arguments: dict[str, Any], options: SearchOptions, reason: str) -> None:
        """Raises InvalidInput for the one argument without which the search works; error codes differ by version."""
        without = {
            "filter": "",
            "partition_names": None,
            "group_by_field": None,
            "search_params": replace(options, search_params=None).params(arguments["limit"], ""),
        }
        asked = {"filter": arguments["filter"]} | {field.name: getattr(options, field.name) for field in fields(options)}
        for name, neutral in without.items():
            if not asked[name]:
                continue
            try:
                self._search({**arguments, "limit": 1, name: neutral}, "Eventually")
            except CollectionError:
                continue
            raise InvalidInput(f"Milvus does not take the {name} {shown(asked[name])!r}: {shown(reason)}", name)

    def _check_partitions(self, names: Sequence[str]) -> None:
        """Raises InvalidInput for a partition that is not there, which Milvus Lite takes for an empty one."""
        if self._partitions.issuperset(names):
            return
        with translated_errors(f"cannot list the partitions of collection {self._name!r}"):
            self._partitions = frozenset(self._client.list_partitions(self._name))
        if missing := [name for name in names if name not in self._partitions]:
            there = shown(", ".join(sorted(self._partitions)))
            raise InvalidInput(
                f"collection {self._name!r} has no partition {shown(missing[0])!r}; there are: {there}", "partition_names"
            )

    def _query(
        self,
        filter: str,
        names: list[str],
        level: str | None,
        timeout: float = READ_TIMEOUT_S,
        **options: Any,
    ) -> list[dict[str, Any]]:
        consistency = {} if level is None else {"consistency_level": level}
        with translated_errors(f"cannot read collection {self._name!r}"):
            rows = self._client.query(
                self._name, filter=filter, output_fields=names, timeout=timeout, **consistency, **options
            )
            return [dict(row) for row in rows]

    def _among(self, ids: Sequence[Id]) -> str:
        # pymilvus' own get and delete by ids do not escape them.
        return f"{self.key} in [{', '.join(map(literal, ids))}]"
