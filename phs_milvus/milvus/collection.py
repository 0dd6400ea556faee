"""A collection of images for focused search; it behaves the same on Milvus Lite and on a Milvus server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, shown
from phs_milvus.contract.types import Float32Array, ModelInfo, StateFormat
from phs_milvus.milvus import creation, schema
from phs_milvus.milvus.attach import Attached, attached, opened
from phs_milvus.milvus.connection import FieldSchema, MilvusClient, check_server, close, connect, translated_errors
from phs_milvus.milvus.options import SearchOptions
from phs_milvus.milvus.rows import Candidates, Id, ModelRecord, Row, batches, check_rows, normalised, quote
from phs_milvus.milvus.schema import NORM_TOLERANCE, not_of_norm_1
from phs_milvus.milvus.side import SideStates, hash_of
from phs_milvus.milvus.table import BYTES_PER_ANSWER, BYTES_PER_CALL, ROWS_PER_CALL, Table

__all__ = ["Candidates", "FocusedCollection", "ModelRecord", "Row", "close", "connect", "quote"]

MAX_LIMIT = 16_384  # topK of a Milvus server
_FIELDS_BYTES = 256  # what the fields of a row weigh, roughly, without embedding and state


class FocusedCollection:
    """One collection, loaded and ready to search. Made by `create`, `open` or `attach`.

    Attributes:
        client: the MilvusClient in use.
        name: the collection's name.
        model: the model that filled it.
        layout: which field is what.
        side: the collection that holds the states of an attached one; None where they are in its own rows.
        foreign: whether somebody else fills it, so that what its embeddings are is only believed.
    """

    def __init__(
        self,
        client: MilvusClient,
        name: str,
        model: ModelRecord,
        layout: schema.Layout,
        side: SideStates | None = None,
        *,
        foreign: bool = False,
    ) -> None:
        self.client = client
        self.name = name
        self.model = model
        self.layout = layout
        self.side = side
        self.foreign = foreign
        self._table = Table(client, name, layout.id)
        self._state_bytes = state_codec.text_length(model.hidden_size, model.state_format)
        self._row_bytes = self._state_bytes + _FIELDS_BYTES

    @classmethod
    def create(
        cls,
        client: MilvusClient,
        name: str,
        model: ModelInfo | ModelRecord,
        *,
        index_type: str = "AUTOINDEX",
        index_params: Mapping[str, Any] | None = None,
        fields: Sequence[FieldSchema] = (),
        partition_key_field: str | None = None,
        num_partitions: int | None = None,
        num_shards: int | None = None,
        consistency_level: str | None = None,
        properties: Mapping[str, Any] | None = None,
        enable_dynamic_field: bool = True,
        id_max_length: int = 1024,
        overwrite: bool = False,
        state_format: StateFormat = "int8",
    ) -> FocusedCollection:
        """Makes an empty collection for the embeddings and states of one model.

        Args:
            name: letters, digits and underscores, not starting with a digit.
            index_type: "AUTOINDEX", "HNSW", "FLAT" (exhaustive) or another one for float vectors.
            index_params: of the index, for example {"M": 32, "efConstruction": 400} for HNSW.
            fields: of the schema, beside our own four, as pymilvus.FieldSchema. What is not among them can still be
                stored with a row, as a dynamic field; only fields of the schema can be indexed, be a partition key, or
                be grouped by.
            partition_key_field: the one of `fields` whose value says which partition a row is in, so that searches
                with a filter on it look into that one alone. Before Milvus 2.4 rows can then be inserted, but not
                upserted, as `ingest_folder` does.
            num_partitions: how many partitions the key is spread over.
            num_shards: how many nodes share the writing.
            consistency_level: what searches see that do not say it themselves; see `search`.
            properties: of the collection, for example {"mmap.enabled": True} or {"collection.ttl.seconds": 3600}.
            enable_dynamic_field: whether rows may have fields that are not in the schema, as those of `ingest_folder`.
            id_max_length: UTF-8 bytes an id may have.
            overwrite: if a collection of that name is there, put the new one in its place and drop it with all its
                rows, when the new one is ready. Aliases of the name stay.
            state_format: "int8", which ranks as float16 does (benchmarks) in about half the space; or "float16"
                (phs_milvus.contract.state).

        Raises:
            InvalidInput: a value that Milvus does not take, or of which this server would make nothing in silence:
                mmap before 2.4, nullable fields and default values before 2.5; or an unknown state format.
            CollectionError: the name is taken, or it is an alias, whose collection is never overwritten; the model's
                state does not fit a row; or Milvus refuses.
        """
        options = creation.CreateOptions(
            index_type,
            index_params,
            fields,
            partition_key_field,
            num_partitions,
            num_shards,
            consistency_level,
            properties,
            enable_dynamic_field,
            id_max_length,
        )
        record = ModelRecord.of(model, state_format)
        creation.check(client, name, record, options)
        with translated_errors(f"cannot create collection {name!r}"):
            exists = client.has_collection(name)
            if exists and not overwrite:
                raise CollectionError(f"collection {name!r} exists; open it, or create it with overwrite=True")
            (creation.replace if exists else creation.create)(client, name, record, options)
        return cls.open(client, name)

    @classmethod
    def open(cls, client: MilvusClient, name: str) -> FocusedCollection:
        """Opens a collection made by `create`, or one that was attached with a side collection.

        Raises:
            CollectionError: no such collection (the message lists those there are), or neither made by `create` nor
                attached.
        """
        return cls._of(client, opened(client, name))

    @classmethod
    def attach(
        cls,
        client: MilvusClient,
        name: str,
        *,
        embedding_field: str | None = None,
        state_field: str | None = None,
        model: ModelInfo | None = None,
        state_format: StateFormat | None = None,
    ) -> FocusedCollection:
        """Uses any collection of embeddings that somebody else fills, whatever its field names and key.

        The states are in a side collection, `<name>_phs`, which is made here and which
        `phs_milvus.ingest.backfill.backfill` fills: the collection itself is only read. Or they are in a field of the
        collection's own, `state_field`, which its owner fills. Rows without a state are found by stage one alone.

        Args:
            embedding_field: FLOAT_VECTOR of the model's embedding size, indexed by COSINE, IP or L2; None: the one
                there is.
            state_field: VARCHAR that holds packed states (`state.pack`); None: they are in the side collection.
            model: vouches for the model that filled it; not needed where the collection, or its side collection,
                remembers. The first search looks whether it is true.
            state_format: what new states are packed in: "int8", the default of a side collection, or "float16", that of
                a field. A side collection that is there has its own, and states of both are read.

        Raises:
            CollectionError: no such collection, a field that is missing or of another type or size, or embeddings
                that are not of norm 1 under IP or L2, which then are no cosine similarities.
            ModelMismatch: the collection remembers another model.
        """
        found = attached(
            client,
            name,
            embedding_field=embedding_field,
            state_field=state_field,
            model=model,
            state_format=state_format,
        )
        return cls._of(client, found)

    @classmethod
    def _of(cls, client: MilvusClient, found: Attached) -> FocusedCollection:
        # An alias may come to mean another collection, whose rows must not meet states or queries of this one.
        return cls(client, found.name, found.model, found.layout, found.side, foreign=found.foreign)

    def __enter__(self) -> FocusedCollection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the client, and with it every collection opened through it; see `connect`."""
        close(self.client)

    @contextmanager
    def patient(self, seconds: float, tell: Callable[[str], None] | None = None) -> Iterator[None]:
        """Inside it, what is read, upserted or deleted is tried for so many seconds while Milvus does not answer.

        For long work, which a restart of Milvus need not end. `insert` is never tried again: it may have been done.

        Args:
            tell: called with a line of text when a wait begins.
        """
        tables = [self._table, *([self.side.table] if self.side else [])]
        for table in tables:
            table.patience, table.tell = seconds, tell
        try:
            yield
        finally:
            for table in tables:
                table.patience, table.tell = 0.0, None

    def check_model(self, info: ModelInfo | ModelRecord) -> None:
        """Raises ModelMismatch, naming both, unless `info` is the model that filled this collection."""
        self.model.check(info, self.name)

    def describe(self) -> dict[str, Any]:
        """The number of rows, the model and the fields, as JSON values; of an attached one also its states."""
        about: dict[str, Any] = {"model": asdict(self.model), "fields": asdict(self.layout)}
        if self.side is not None:
            about["states"] = {"collection": self.side.name, "rows": self.side.count(), **asdict(self.side.attachment)}
        return {"name": self.name, "rows": self.count(), **about}

    # --- writes ---------------------------------------------------------------------------------------------

    def insert(self, rows: Sequence[Row]) -> None:
        """Adds rows whose ids are new. If they may exist, use `upsert`: a Milvus server would store an id twice.

        Raises:
            InvalidInput: a row does not fit; the message names its id, and nothing is stored.
        """
        self._write(rows, self._table.insert)

    def upsert(self, rows: Sequence[Row]) -> None:
        """Adds rows; those with the same ids are replaced, metadata included. Raises as `insert`."""
        if self.layout.partition_key:
            try:
                check_server(self.client, (2, 4), "upserting", "rows")
            except InvalidInput as error:
                raise CollectionError(
                    f"collection {self.name!r} has a partition key, and older servers upsert rows into a wrong "
                    f"partition, where a filter on the key does not find them: {error}; insert works"
                ) from None
        # Milvus would replace a row only within the partition that it writes to.
        if not self.layout.partition_key and len(partitions := self._table.partitions()) > 1:
            raise CollectionError(
                f"collection {self.name!r} has partitions ({shown(', '.join(partitions))}), and a row that is replaced "
                "must stay in its own; write to it with pymilvus, which takes partition_name"
            )
        self._write(rows, self._table.upsert)

    def check_writable(self) -> None:
        """Raises CollectionError for a collection that only its owner can write to."""
        if self.layout.auto_id:
            raise CollectionError(f"collection {self.name!r} makes up its own ids; write to it with pymilvus")
        self._check_own()

    def _check_own(self) -> None:
        if self.side is not None:
            raise CollectionError(
                f"collection {self.name!r} belongs to another application; write to it with pymilvus, then run "
                "phs-milvus attach again, which makes the states of new rows"
            )

    def _write(self, rows: Sequence[Row], call: Callable[[list[dict[str, Any]]], None]) -> None:
        self.check_writable()
        at = self.layout
        reserved = (at.id, at.embedding, at.state or "", at.digest or "digest", "$meta")
        sizes = check_rows(rows, self.model, at.id_max_length, reserved, None if at.dynamic else at.others)
        records = [self._record(row) for row in rows]
        for part in batches(sizes, ROWS_PER_CALL, BYTES_PER_CALL):
            call(records[part])

    def _record(self, row: Row) -> dict[str, Any]:
        at = self.layout
        record: dict[str, Any] = {at.id: row.id, str(at.state): self.packed(row)}
        record[at.embedding] = np.ascontiguousarray(row.embedding, dtype=np.float32)
        if at.digest is not None:
            record[at.digest] = row.digest
        return record | row.metadata

    def packed(self, row: Row) -> str:
        """A row's state as this collection stores it."""
        return row.state if isinstance(row.state, str) else state_codec.pack(row.state, self.model.state_format)

    def delete(self, ids: Sequence[Id]) -> None:
        """Deletes rows; ids that do not exist are ignored.

        Raises:
            CollectionError: the collection was attached, and only its owner writes to it.
        """
        self._check_own()
        for start in range(0, len(ids), 1000):
            self._table.delete(ids[start : start + 1000])

    def flush(self) -> None:
        """Makes Milvus seal and index new rows, which takes a second or two; call it at the end of a bulk load.

        Until then a server searches new rows through a coarse index, which finds too few for a large limit.
        """
        self._table.flush()

    def remember_state_format(self, state_format: StateFormat) -> None:
        """Makes new states, of this object and of those opened later, be packed in this format; old ones stay.

        Raises:
            CollectionError: Milvus refuses, or the states are in a field of somebody else's.
        """
        model = replace(self.model, state_format=state_format)
        if self.side is not None:
            self.side.remember_model(model)
        elif self.foreign:
            raise CollectionError(f"collection {self.name!r} is its owner's; nothing is remembered in it")
        else:
            with translated_errors(f"cannot change collection {self.name!r}"):
                self.client.alter_collection_properties(self.name, {"phs": model.to_json()})
        self.model = model

    def wait_until_indexed(self) -> None:
        """Returns when every sealed row is in the index; on Milvus Lite at once."""
        self._table.wait_until_indexed(self.layout.embedding)

    # --- reads ----------------------------------------------------------------------------------------------

    def count(self) -> int:
        """The current number of rows."""
        return self._table.count()

    def check_not_empty(self) -> None:
        """Raises CollectionError if there are no rows: for a search that found nothing."""
        if self._table.is_empty():
            raise CollectionError(f"collection {self.name!r} is empty; ingest images first")

    def get(
        self,
        ids: Sequence[Id],
        output_fields: Sequence[str] = ("*",),
        *,
        consistency_level: str | None = "Strong",
        timeout: float | None = None,
    ) -> list[dict[str, Any]]:
        """The fields of rows, ids included, in the order of `ids`; rows that do not exist are left out.

        Args:
            output_fields: names; "*" means all but vectors and the state, unlike MilvusClient's, which has vectors too.
            consistency_level: "Strong" gives the fields as they are now; a server waits about 0.2 s to be sure of it.
                Others as for `search`: None finds a row that is new in any case, but of one that another client
                changed in the last seconds it may give the fields as they were.
            timeout: seconds that a call may take; None: 30.

        Raises:
            InvalidInput: the collection cannot have such a field.
        """
        return self._get(ids, output_fields, SearchOptions(consistency_level=consistency_level, timeout=timeout))

    def _get(self, ids: Sequence[Id], output_fields: Sequence[str], options: SearchOptions) -> list[dict[str, Any]]:
        names, key = self._names(output_fields), self.layout.id
        weight = _FIELDS_BYTES + (self._state_bytes if self.layout.state in names else 0)
        weight += 4 * self.model.embedding_size if self.layout.embedding in names else 0
        level, seconds = options.consistency_level, options.seconds()
        columns = self._columns(names)
        rows = self._table.get(ids, columns, weight, level, seconds)
        if level is None and len(rows) < len(ids):  # rows may be so new that only "Strong" sees them
            found = {row[key] for row in rows}
            new = self._table.get([one for one in ids if one not in found], columns, weight, timeout=seconds)
            by_id = {row[key]: row for row in (*rows, *new)}
            rows = [by_id[one] for one in ids if one in by_id]
        return rows

    @property
    def has_digests(self) -> bool:
        """Whether rows can have digests: in a field, or beside their states."""
        return self.side is not None or self.layout.digest is not None

    def digests(self, ids: Sequence[Id]) -> dict[Id, str]:
        """The current digests of the ids that exist, by id; of an attached collection, of those with a state.

        Raises:
            CollectionError: the collection was attached and has no place for digests.
        """
        if self.side is not None:
            return {key: one.digest for key, one in zip(ids, self.side.read(ids), strict=True) if one.digest}
        name = self.layout.digest
        if name is None:
            raise CollectionError(f"collection {self.name!r} has no VARCHAR field 'digest' and no dynamic fields")
        return {row[self.layout.id]: row.get(name) or "" for row in self.get(ids, [name])}

    def iterate_ids(self, *, after: Id | None = None, filter: str = "", timeout: float | None = None) -> Iterator[Id]:
        """All ids in ascending order, in bounded memory; rows may come and go meanwhile.

        Args:
            after: only ids after this one.
            filter: only those of the rows that this Milvus expression takes.
            timeout: seconds that a call may take; None: 30.

        Raises:
            InvalidInput: Milvus refuses the filter.
        """
        return self._table.iterate_keys(after, filter, SearchOptions(timeout=timeout).seconds())

    def search(
        self,
        embeddings: Float32Array,
        limit: int,
        *,
        filter: str = "",
        output_fields: Sequence[str] = (),
        with_states: bool = False,
        partition_names: Sequence[str] | None = None,
        search_params: Mapping[str, Any] | None = None,
        group_by_field: str | None = None,
        consistency_level: str | None = None,
        timeout: float | None = None,
    ) -> list[Candidates]:
        """Finds the nearest rows to each query, in one call to Milvus unless the answer is too large for one.

        Args:
            embeddings: float32 [Q, E], finite.
            limit: rows per query, at most 16,384.
            filter: a Milvus expression, for example f"album == {quote(name)}".
            output_fields: names; "*" means all but vectors and the state, unlike MilvusClient's, which has vectors too.
            with_states: return the packed PHS states too.
            partition_names, search_params, group_by_field, consistency_level, timeout: as MilvusClient.search takes
                them; see `phs_milvus.milvus.options.SearchOptions`.

        Raises:
            InvalidInput: an argument that cannot be used; `.field` names it.
            MilvusUnavailable: Milvus does not answer.
            CollectionError: stored embeddings that are not of norm 1, under IP or L2.
        """
        options = SearchOptions(partition_names, search_params, group_by_field, consistency_level, timeout)
        queries = normalised(embeddings, self.model.embedding_size)
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit is 1 to {MAX_LIMIT:,}, got {limit:,}", "limit")
        names = self._names(output_fields)
        per_call = BYTES_PER_ANSWER // (limit * self._row_bytes)
        # Where the states of a single query are too many for one answer, they are read by id afterwards.
        # The id is among the columns because Milvus Lite takes no columns for all columns.
        in_row = [self.layout.state] if self.layout.state and with_states and per_call else []
        columns = self._columns([self.layout.id, *names, *in_row])
        params = options.params(limit, self.layout.metric)
        found = []
        for start in range(0, len(queries), per_call or 1):
            part = list(queries[start : start + (per_call or 1)])
            hits = self._table.search(self.layout.embedding, part, limit, filter, columns, params, options)
            found += [self._candidates(list(row), names, options if with_states else None) for row in hits]
        return found

    def _candidates(self, hits: list[Any], names: list[str], with_states: SearchOptions | None) -> Candidates:
        at = self.layout
        ids = [hit[at.id] for hit in hits]
        entities = [hit["entity"] for hit in hits]
        cosines = np.array([hit["distance"] for hit in hits], dtype=np.float32)
        if at.metric == "L2":
            cosines = 1 - cosines / np.float32(2)  # the squared distance of vectors of norm 1 is 2 - 2 cos
        if (np.abs(cosines) > 1 + NORM_TOLERANCE).any():  # rows that the sample at `attach` missed
            raise not_of_norm_1(self.name, at.embedding, at.metric, f"a 'cosine' is {np.abs(cosines).max():.3g}")
        states = self._states(ids, entities, with_states) if with_states else None
        hidden = {at.id, at.state} - set(names)
        fields = [{key: entity[key] for key in entity if key not in hidden} for entity in entities]
        return Candidates(ids, cosines, states, fields)

    def _states(self, ids: list[Id], entities: list[dict[str, Any]], options: SearchOptions) -> list[str]:
        """The packed states of hits, "" for rows that have none; `entities` are what the search gave of each."""
        field = self.layout.state
        if field is not None and all(field in entity for entity in entities):
            return [entity[field] or "" for entity in entities]
        return self._stored_states(ids, options)

    def _stored_states(self, ids: Sequence[Id], options: SearchOptions) -> list[str]:
        if self.side is not None:
            return [stored.state for stored in self.side.read(ids)]
        field = str(self.layout.state)
        rows = {row[self.layout.id]: row.get(field) for row in self._get(ids, [field], options)}
        return [rows.get(key) or "" for key in ids]

    def states(self, ids: Sequence[Id]) -> list[str]:
        """The current packed states of rows, in the order of `ids`; "" for rows that have none, or are not there."""
        return self._stored_states(ids, SearchOptions(consistency_level="Strong"))

    def sample_states(self, count: int) -> tuple[Float32Array, list[str], int]:
        """Embeddings and states of a few rows, to see whether they belong together.

        Returns:
            (embeddings, states, changed): float32 [n, E] and packed states of the same n rows, at most `count`; and the
            number of other rows looked at, whose embedding was changed after their state was made.
        """
        at, side = self.layout, self.side
        changed = 0
        if side is None:
            rows = self._table.sample([at.embedding, str(at.state)], count)
            pairs = [(row[at.embedding], row[str(at.state)]) for row in rows if row.get(str(at.state))]
        else:
            made = side.sample(count)
            rows = self.get(list(made), [at.embedding])
            fitting = [row for row in rows if hash_of(row[at.embedding]) == made[row[at.id]][1]]
            changed = len(rows) - len(fitting)
            pairs = [(row[at.embedding], made[row[at.id]][0]) for row in fitting]
        embeddings = np.array([embedding for embedding, _ in pairs], np.float32)
        return embeddings.reshape(len(pairs), self.model.embedding_size), [text for _, text in pairs], changed

    def _names(self, output_fields: Sequence[str]) -> list[str]:
        """Expands "*" and refuses fields that cannot exist, which Milvus Lite would silently leave out."""
        at = self.layout
        known = [at.id, *([at.digest] if at.digest else []), *at.others]
        names: list[str] = []
        for name in output_fields:
            if name == "*":
                names += [key for key in known if key not in at.vectors] + (["$meta"] if at.dynamic else [])
            elif name in (*known, at.embedding, at.state) or (at.dynamic and name.isidentifier()):
                names.append(name)
            else:
                has = ", ".join(known)
                raise InvalidInput(f"collection {self.name!r} has no field {name!r}; it has {has}", "output_fields")
        return list(dict.fromkeys(names))

    def _columns(self, names: list[str]) -> list[str]:
        """What to ask Milvus for to get these fields: where all dynamic ones are wanted, naming one of them too would
        make pymilvus leave the others out."""
        at = self.layout
        if "$meta" not in names:
            return names
        fixed = {"$meta", at.id, at.embedding, at.state, *at.others, *([] if at.digest_is_dynamic else [at.digest])}
        return [name for name in names if name in fixed]
