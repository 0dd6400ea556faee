"""The side collection of an attached one: the PHS states of its rows, apart from them.

`<name>_phs` has the owner's keys and, for each, a state. The owner's collection is read and never written, which works
whatever its keys, partitions and fields are, and dropping the side collection undoes everything.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cachetools import TTLCache

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError
from phs_milvus.contract.types import Float16Array
from phs_milvus.milvus.connection import DataType, MilvusClient, translated_errors
from phs_milvus.milvus.rows import Id, ModelRecord, batches
from phs_milvus.milvus.table import BYTES_PER_CALL, ROWS_PER_CALL, Table

_SUFFIX = "_phs"
# Milvus wants a vector in every collection. Nobody searches by this one.
_DUMMY, _DUMMY_VALUE = "unused", [1.0, 0.0]
_STATE, _OF, _DIGEST = "phs_state", "embedding_hash", "digest"
_HASH_BYTES = 8
# States that were read are kept for as long as searches may trail writes anyway, or a little longer.
_CACHE_BYTES, _CACHE_SECONDS = 64 * 2**20, 30.0


def name_of(collection: str) -> str:
    """The name of the side collection of a collection."""
    return collection + _SUFFIX


def hash_of(embedding: npt.ArrayLike) -> str:
    """Says which stored embedding, float [E], a state belongs to: 16 hexadecimal digits of BLAKE2b of its float32."""
    data = np.asarray(embedding, dtype="<f4").tobytes()
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).hexdigest()


@dataclass(frozen=True)
class Attachment:
    """What a side collection remembers of the collection that it belongs to.

    Attributes:
        embedding_field: the field that holds the embeddings.
        image_field: the field that says where a row's picture is; None: the primary key says it.
        images: what goes before it, a folder or a URL template (`phs_milvus.search.sources.row_finder`); None where the
            field has whole paths or URLs, or where a function of the caller's finds the pictures.
    """

    embedding_field: str
    image_field: str | None = None
    images: str | None = None


class StoredState(NamedTuple):
    """What the side collection holds of one row.

    Attributes:
        state: packed, for `state.unpack`; "" where there is none yet.
        digest: sha256 in hex of the picture file from which the state was made, or "".
    """

    state: str = ""
    digest: str = ""


@dataclass(frozen=True, eq=False)
class NewState:
    """A state to store.

    Attributes:
        id: the owner's key.
        state: float16 [2, D].
        embedding: the row's stored embedding, float [E], to which the state belongs.
        digest: sha256 in hex of the picture file.
    """

    id: Id
    state: Float16Array
    embedding: npt.ArrayLike
    digest: str


class SideStates:
    """The side collection, loaded. Made by `create` or `find`.

    Attributes:
        name: of the side collection.
        model: the model whose states it holds.
        attachment: what it remembers of its owner.
        table: its records.
    """

    def __init__(self, client: MilvusClient, name: str, key: str, model: ModelRecord, attachment: Attachment) -> None:
        self.name = name
        self.model = model
        self.attachment = attachment
        self._client = client
        self.table = Table(client, name, key, all_visible=False)
        self._row_bytes = state_codec.text_length(model.hidden_size, model.state_format) + 256
        self._cache: TTLCache[Id, StoredState] = TTLCache(_CACHE_BYTES, _CACHE_SECONDS, getsizeof=_size_of)
        self._lock = threading.Lock()

    @classmethod
    def create(
        cls, client: MilvusClient, owner: dict[str, Any], model: ModelRecord, attachment: Attachment
    ) -> SideStates:
        """Makes the empty side collection of a collection.

        Args:
            owner: its description.
        """
        name = name_of(owner["collection_name"])
        key = next(field for field in owner["fields"] if field.get("is_primary"))
        text = _to_json(model, attachment)
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=text)
        limit = {"max_length": int(key["params"]["max_length"])} if key["type"] == DataType.VARCHAR else {}
        schema.add_field(key["name"], key["type"], is_primary=True, **limit)
        schema.add_field(_DUMMY, DataType.FLOAT_VECTOR, dim=len(_DUMMY_VALUE))
        schema.add_field(
            _STATE, DataType.VARCHAR, max_length=state_codec.text_length(model.hidden_size, model.state_format)
        )
        schema.add_field(_OF, DataType.VARCHAR, max_length=2 * _HASH_BYTES)
        schema.add_field(_DIGEST, DataType.VARCHAR, max_length=64)
        with translated_errors(f"cannot create collection {name!r}"):
            level = owner.get("consistency_level")
            levels = {} if level is None else {"consistency_level": level}
            client.create_collection(name, schema=schema, properties={"phs": text}, **levels)
            _index(client, name)
        return cls(client, name, key["name"], model, attachment)

    @classmethod
    def find(cls, client: MilvusClient, owner: dict[str, Any]) -> SideStates | None:
        """The side collection of a collection; None where there is none.

        Args:
            owner: its description.

        Raises:
            CollectionError: a collection of that name is something else.
        """
        name = name_of(owner["collection_name"])
        with translated_errors(f"cannot open collection {name!r}"):
            if (description := _described(client, name)) is None:
                return None
            found = _read(description)
            if not client.list_indexes(name):  # its making was interrupted
                _index(client, name)
        key = next(field["name"] for field in description["fields"] if field.get("is_primary"))
        return cls(client, name, key, *found)

    def remember(self, attachment: Attachment) -> None:
        """Changes what is remembered of the owner."""
        if attachment == self.attachment:
            return
        with translated_errors(f"cannot change collection {self.name!r}"):
            self._client.alter_collection_properties(self.name, {"phs": _to_json(self.model, attachment)})
        self.attachment = attachment

    def remember_model(self, model: ModelRecord) -> None:
        """Changes what is remembered of the model: the format of new states."""
        with translated_errors(f"cannot change collection {self.name!r}"):
            self._client.alter_collection_properties(self.name, {"phs": _to_json(model, self.attachment)})
        self.model = model

    def compact(self, ids: Sequence[Id]) -> dict[Id, tuple[str, None]]:
        """Packs float16 states anew as int8; what else is stored with them stays.

        Returns:
            the old packed state of each row that had float16; there is no embedding here to give with it.
        """
        size, old = self.model.hidden_size, {}
        rows = self.table.get(ids, [_STATE, _OF, _DIGEST], state_codec.text_length(size) + 256)
        records = []
        for row in rows:
            key, text = row[self.table.key], row[_STATE]
            if state_codec.format_of(text, size) == "float16":
                old[key] = text, None
                packed = state_codec.pack(state_codec.unpack([text], size, [key])[0], "int8")
                records.append({**row, _DUMMY: _DUMMY_VALUE, _STATE: packed})
        for part in batches([self._row_bytes] * len(records), ROWS_PER_CALL, BYTES_PER_CALL):
            self.table.upsert(records[part])
        self._forget(old)
        return old

    def count(self) -> int:
        """The current number of states."""
        return self.table.count()

    def read(self, ids: Sequence[Id]) -> list[StoredState]:
        """What is stored of each row, in their order. Some may have been read up to 30 seconds ago."""
        with self._lock:
            found = {key: one for key in ids if (one := self._cache.get(key)) is not None}
        missing = [key for key in dict.fromkeys(ids) if key not in found]
        rows = self.table.get(missing, [_STATE, _DIGEST], self._row_bytes, level=None) if missing else []
        read = {row[self.table.key]: StoredState(row[_STATE], row[_DIGEST]) for row in rows}
        with self._lock:
            for key, one in read.items():
                self._cache[key] = one
        found |= read
        return [found.get(key, StoredState()) for key in ids]

    def hashes(self, ids: Sequence[Id]) -> dict[Id, str]:
        """`hash_of` the embedding that each stored state belongs to, at present."""
        rows = self.table.get(ids, [_OF], 2 * _HASH_BYTES)
        return {row[self.table.key]: row[_OF] for row in rows}

    def sample(self, count: int) -> dict[Id, tuple[str, str]]:
        """Of at most `count` rows the packed state and the hash of its embedding."""
        rows = self.table.sample([self.table.key, _STATE, _OF], count)
        return {row[self.table.key]: (row[_STATE], row[_OF]) for row in rows}

    def write(self, states: Sequence[NewState]) -> None:
        """Adds states, or replaces those of the same rows.

        Raises:
            StateError: a state of another shape, or not finite.
        """
        records = [
            {
                self.table.key: new.id,
                _DUMMY: _DUMMY_VALUE,
                _STATE: state_codec.pack(new.state, self.model.state_format),
                _OF: hash_of(new.embedding),
                _DIGEST: new.digest,
            }
            for new in states
        ]
        for part in batches([self._row_bytes] * len(records), ROWS_PER_CALL, BYTES_PER_CALL):
            self.table.upsert(records[part])
        self._forget(new.id for new in states)

    def delete(self, ids: Sequence[Id]) -> None:
        """Deletes the states of rows; ids that do not exist are ignored."""
        for start in range(0, len(ids), 1000):
            self.table.delete(ids[start : start + 1000])
        self._forget(ids)

    def iterate_ids(self) -> Iterator[Id]:
        """The ids of all rows that have a state, in ascending order, in bounded memory."""
        return self.table.iterate_keys()

    def flush(self) -> None:
        """Makes Milvus seal new states; call it at the end of a bulk load."""
        self.table.flush()

    def drop(self) -> None:
        """Drops the side collection, and with it all that was ever stored for the owner's."""
        with translated_errors(f"cannot drop collection {self.name!r}"):
            self._client.drop_collection(self.name)

    def _forget(self, ids: Iterable[Id]) -> None:
        with self._lock:
            for key in ids:
                self._cache.pop(key, None)


def drop_side(client: MilvusClient, owner: str) -> bool:
    """Drops the side collection of a collection, which may be gone itself; False where there is none.

    Raises:
        CollectionError: a collection of that name is something else.
    """
    description = _described(client, name_of(owner))
    if description is None:
        return False
    _read(description)
    client.drop_collection(name_of(owner))
    return True


def _described(client: MilvusClient, name: str) -> dict[str, Any] | None:
    return dict(client.describe_collection(name)) if client.has_collection(name) else None


def _read(description: dict[str, Any]) -> tuple[ModelRecord, Attachment]:
    """What a side collection remembers.

    Raises:
        CollectionError: it is none.
    """
    texts = (dict(description.get("properties") or {}).get("phs"), description.get("description"))
    found = next((read for text in texts if text and (read := _from_json(text))), None)
    if found is None:
        name = description["collection_name"]
        raise CollectionError(
            f"the states of {name.removesuffix(_SUFFIX)!r} would be in {name!r}, but that collection is something "
            "else; rename it, or keep the states in a field of your own (state_field)"
        )
    return found


def _index(client: MilvusClient, name: str) -> None:
    index = client.prepare_index_params()
    index.add_index(_DUMMY, index_type="FLAT", metric_type="L2")
    client.create_index(name, index, sync=False)


def _size_of(stored: StoredState) -> int:
    return len(stored.state) + 256  # the objects around it


def _to_json(model: ModelRecord, attachment: Attachment) -> str:
    return json.dumps({**json.loads(model.to_json()), "attached": asdict(attachment)})


def _from_json(text: str) -> tuple[ModelRecord, Attachment] | None:
    model = ModelRecord.from_json(text)
    try:
        values = json.loads(text)["attached"]  # a later version may have more
        known = {item.name: values[item.name] for item in fields(Attachment) if item.name in values}
        return None if model is None else (model, Attachment(**known))
    except (KeyError, TypeError):
        return None
