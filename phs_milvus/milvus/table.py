"""A Milvus collection as a table of plain records, with the same behaviour on Milvus Lite and on servers.

The differences between the two were found by experiment with milvus-lite 3.2 and Milvus 2.3.5. Those in creating and
connecting are dealt with in creation.py and connection.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.milvus.connection import MilvusClient, is_lite, message_of, translated_errors
from phs_milvus.milvus.rows import Id, literal

# A proxy takes messages of 64 MiB in, and fails on answers of about 100 MB.
BYTES_PER_CALL = 32 * 2**20
BYTES_PER_ANSWER = 64 * 2**20
ROWS_PER_CALL = 500

_IDS_PER_PAGE = 8192
_TIMEOUT_S = 120.0
_STRONG = {"consistency_level": "Strong"}


class Table:
    """Reads and writes one loaded collection. Every method raises CollectionError with Milvus' message.

    Attributes:
        key: name of the primary key field.
        all_visible: False where another process may have written a moment ago what the first read must see.
    """

    def __init__(self, client: MilvusClient, name: str, key: str, *, all_visible: bool = True) -> None:
        self.key = key
        self._client = client
        self._name = name
        self._lite = is_lite(client)
        # A server searches a snapshot that may be seconds old, so the first search after a write of ours asks for the
        # current state. Reads by id always do.
        self._written = not all_visible
        with translated_errors(f"cannot load collection {name!r}"):
            client.load_collection(name)  # Milvus Lite needs this after every reopen

    def insert(self, records: list[dict[str, Any]]) -> None:
        """Adds records; if an id exists already, a server stores it twice."""
        self._write(self._client.insert, records)

    def upsert(self, records: list[dict[str, Any]]) -> None:
        """Adds or replaces records."""
        # Lite's upsert would keep old dynamic fields; its insert, where its upsert ends, replaces all.
        self._write(self._client.insert if self._lite else self._client.upsert, records)

    def _write(self, call: Any, records: list[dict[str, Any]]) -> None:
        with translated_errors(f"cannot write to collection {self._name!r}"):
            call(self._name, records, timeout=_TIMEOUT_S)
        self._written = True

    def delete(self, ids: Sequence[Id]) -> None:
        """Deletes records by id."""
        with translated_errors(f"cannot delete from collection {self._name!r}"):
            self._client.delete(self._name, filter=self._among(ids), timeout=_TIMEOUT_S)
        self._written = True

    def flush(self) -> None:
        """Seals and indexes new records."""
        with translated_errors(f"cannot flush collection {self._name!r}"):
            self._client.flush(self._name, timeout=_TIMEOUT_S)

    def partitions(self) -> list[str]:
        """The names of the partitions; of a collection with a partition key they are Milvus' own."""
        with translated_errors(f"cannot read collection {self._name!r}"):
            return list(self._client.list_partitions(self._name))

    def count(self) -> int:
        """The current number of records."""
        return int(self._query("", ["count(*)"])[0]["count(*)"])

    def get(self, ids: Sequence[Id], names: Sequence[str], page: int, *, current: bool = True) -> list[dict[str, Any]]:
        """Records with their keys, in the order of `ids`; ids that do not exist are left out.

        Args:
            current: False reads, after a write of ours excepted, with the collection's own consistency, which does not
                wait for what others wrote a moment ago.
        """
        found: dict[Id, dict[str, Any]] = {}
        if not current:
            current, self._written = self._written, False
        for start in range(0, len(ids), page):
            rows = self._query(self._among(ids[start : start + page]), [*names, self.key], current=current)
            found |= {row[self.key]: row for row in rows}
        return [found[key] for key in ids if key in found]

    def sample(self, names: Sequence[str], count: int, filter: str = "") -> list[dict[str, Any]]:
        """At most `count` records, whichever Milvus gives first."""
        return self._query(filter, list(names), limit=count)

    def iterate_keys(self, after: Id | None = None) -> Iterator[Id]:
        """All ids in ascending order, or those after one, a page at a time."""
        # Each page starts after the last id of the page before it. pymilvus' own iterator does the same, but does not
        # escape that id. The options make Milvus sort the records before it applies the limit.
        options: dict[str, Any] = {"iterator": "True", "reduce_stop_for_best": "True", "limit": _IDS_PER_PAGE}
        condition = "" if after is None else f"{self.key} > {literal(after)}"
        # With these options pymilvus drops the consistency level; counting first makes the server catch up.
        self.count()
        while page := [row[self.key] for row in self._query(condition, [self.key], **options)]:
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
    ) -> list[Any]:
        """pymilvus' hits for each query.

        Raises:
            InvalidInput: Milvus refuses the filter.
        """

        def call(**consistency: str) -> list[Any]:
            hits: list[Any] = self._client.search(
                self._name,
                anns_field=field,
                data=queries,
                limit=limit,
                filter=filter,
                output_fields=names,
                search_params={"params": params},
                timeout=_TIMEOUT_S,
                **consistency,
            )
            return hits

        try:
            with translated_errors(f"cannot search collection {self._name!r}"):
                written, self._written = self._written, False
                hits = call(**_STRONG if written else {})
                # No hits may mean that another client's rows are not visible yet.
                return hits if written or any(map(len, hits)) else call(**_STRONG)
        except CollectionError:
            if filter:
                self._blame(filter)
            raise

    def _blame(self, filter: str) -> None:
        """Raises InvalidInput if queries work, but not with this filter; Milvus' error codes differ by version."""
        self._query("", [self.key], limit=1)
        try:
            self._query(filter, [self.key], limit=1)
        except CollectionError as error:
            cause = message_of(error.__cause__ or error)
            raise InvalidInput(
                f"Milvus does not take the filter {shown(filter)!r}: {shown(cause)}", "filter"
            ) from error

    def _query(self, filter: str, names: list[str], *, current: bool = True, **options: Any) -> list[dict[str, Any]]:
        consistency = _STRONG if current else {}
        with translated_errors(f"cannot read collection {self._name!r}"):
            rows = self._client.query(
                self._name, filter=filter, output_fields=names, timeout=_TIMEOUT_S, **consistency, **options
            )
            return [dict(row) for row in rows]

    def _among(self, ids: Sequence[Id]) -> str:
        # pymilvus' own get and delete by ids do not escape them.
        return f"{self.key} in [{', '.join(map(literal, ids))}]"
