"""The values that go into a collection and come out of it: rows, candidates, the model's record, filter literals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, ModelMismatch, StateError, shown
from phs_milvus.contract.types import Float16Array, Float32Array, ModelInfo, StateFormat

Id = str | int

# A server refuses dynamic fields of more than 65,536 bytes as JSON.
_MAX_METADATA_BYTES = 65_536
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quote(text: str) -> str:
    """A string literal for a Milvus filter expression, with its quotes; use it to put any value into a filter.

        f"name == {quote(name)}"

    Raises:
        InvalidInput: the text is not valid Unicode: it has lone surrogates, as undecodable file names do.
    """
    check_text(text, "filter")
    return '"' + "".join(_ESCAPES.get(char, char) for char in text) + '"'


def literal(value: Id) -> str:
    """An id as it stands in a filter expression."""
    return quote(value) if isinstance(value, str) else str(int(value))


def check_text(text: str, name: str) -> int:
    """Size of `text` in UTF-8 bytes, which is what Milvus limits.

    Raises:
        InvalidInput: the text cannot be encoded; `name` is the error's field.
    """
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidInput(f"{text!r} is not valid Unicode text", name) from None


@dataclass(eq=False)
class Row:
    """One image of a collection.

    Attributes:
        id: primary key: text, or int for an attached collection with an INT64 key.
        embedding: float32 [E], of norm 1.
        state: float16 [2, D], the PHS state, which is packed in the collection's format; or one that is packed already,
            as it was read from a row.
        digest: sha256 of the image file in hex, or "".
        metadata: the user's fields, as JSON values by name.
    """

    id: Id
    embedding: Float32Array
    state: Float16Array | str
    digest: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The K nearest rows to one query, best first.

    Attributes:
        ids: K primary keys.
        scores: float32 [K], cosine similarity.
        states: K packed PHS states, for `state.unpack`; None where they were not asked for.
        fields: the output fields of each row; a row that lacks a dynamic field lacks the key.
    """

    ids: list[Id]
    scores: Float32Array
    states: list[str] | None
    fields: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ModelRecord:
    """The model that filled a collection, as the collection's description records it; fields as in ModelInfo.

    state_format: what new rows' states are packed in; records older than the choice mean float16.
    """

    fingerprint: str
    model_id: str
    hidden_size: int
    embedding_size: int
    heads: int
    image_size: int
    state_format: StateFormat = "float16"

    @classmethod
    def of(cls, info: ModelInfo | ModelRecord, state_format: StateFormat = "float16") -> ModelRecord:
        """The part of `info` that a collection keeps."""
        return cls(**{name: getattr(info, name) for name in _OF_MODEL}, state_format=state_format)

    def to_json(self) -> str:
        """The text that goes into a collection's description."""
        return json.dumps({"phs": asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> ModelRecord | None:
        """Reads `to_json`'s text; None for a description that somebody else wrote.

        Raises:
            CollectionError: the states are in a format that this version does not know.
        """
        try:
            values = json.loads(text)["phs"]
            record = cls(**{name: values[name] for name in _OF_MODEL}, **_only(values, "state_format"))
        except (ValueError, TypeError, KeyError):
            return None
        if record.state_format not in state_codec.STATE_FORMATS:
            known = ", ".join(state_codec.STATE_FORMATS)
            raise CollectionError(
                f"the collection's states are in format {shown(record.state_format)!r}, and this version of phs-milvus "
                f"reads {known}; install a later one"
            )
        return record

    def check(self, info: ModelInfo | ModelRecord, collection: str) -> None:
        """Raises ModelMismatch unless `info` is this model."""
        if info.fingerprint == self.fingerprint:
            return
        mine, theirs = f"fingerprint {self.fingerprint[:16]}", f"fingerprint {info.fingerprint[:16]}"
        if info.image_size != self.image_size:
            mine, theirs = f"{mine}, image size {self.image_size}", f"{theirs}, image size {info.image_size}"
        raise ModelMismatch(
            f"collection {collection!r} was filled with {self.model_id!r} ({mine}), but the encoder runs "
            f"{info.model_id!r} ({theirs}); their embeddings cannot be compared: use the same model, or "
            "ingest into another collection"
        )


_OF_MODEL = [item.name for item in fields(ModelRecord) if item.name != "state_format"]


def _only(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def check_rows(
    rows: Sequence[Row],
    model: ModelRecord,
    id_max_length: int | None,
    reserved: Sequence[str],
    known: Sequence[str] | None,
) -> list[int]:
    """Checks every row before any is sent, because Milvus Lite accepts NaN and a batch must not be stored in part.

    Args:
        id_max_length: UTF-8 bytes a text id may have; None where ids are integers.
        reserved: field names that metadata must not use.
        known: the only names that metadata may use; None where dynamic fields are allowed.

    Returns:
        the approximate size of each row in bytes.

    Raises:
        InvalidInput: a row cannot be stored; the message names its id and what is wrong.
        StateError: a state has another size.
    """
    seen: set[Id] = set()
    sizes = []
    fixed = 4 * model.embedding_size + state_codec.text_length(model.hidden_size, model.state_format)
    for row in rows:
        size = _check_id(row.id, id_max_length)
        if row.id in seen:
            raise InvalidInput(f"id {row.id!r} occurs twice in this batch", "id")
        seen.add(row.id)
        _check_embedding(row, model)
        _check_state(row, model)
        sizes.append(fixed + size + check_text(row.digest, "digest") + _check_metadata(row, reserved, known))
    return sizes


def _check_id(value: Id, max_length: int | None) -> int:
    if max_length is None:
        if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
            raise InvalidInput(f"this collection's ids are 64-bit integers, got {value!r}", "id")
        return 8
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"an id is non-empty text, got {value!r}", "id")
    size = check_text(value, "id")
    if size > max_length:
        raise InvalidInput(f"id {value[:60]!r}... has {size} bytes; this collection allows {max_length}", "id")
    return size


def _check_embedding(row: Row, model: ModelRecord) -> None:
    embedding = np.asarray(row.embedding)
    if embedding.shape != (model.embedding_size,):
        raise InvalidInput(
            f"row {row.id!r}: an embedding of {model.model_id!r} has shape [{model.embedding_size}], "
            f"got {list(embedding.shape)}",
            "embedding",
        )
    norm = float(np.linalg.norm(embedding.astype(np.float64)))
    # Written so that NaN fails too.
    if not abs(norm - 1) <= 1e-3:
        raise InvalidInput(f"row {row.id!r}: an embedding is finite with norm 1, got norm {norm:.6g}", "embedding")


def _check_state(row: Row, model: ModelRecord) -> None:
    if isinstance(row.state, str):
        most = state_codec.text_length(model.hidden_size, model.state_format)
        if state_codec.format_of(row.state, model.hidden_size) is None or len(row.state) > most:
            raise StateError(
                f"row {row.id!r}: a packed state of {model.model_id!r} has {most} characters here "
                f"({model.state_format}), got {len(row.state)}"
            )
    elif np.shape(row.state) != (2, model.hidden_size):
        raise StateError(
            f"row {row.id!r}: a state of {model.model_id!r} has shape [2, {model.hidden_size}], "
            f"got {list(np.shape(row.state))}"
        )


def _check_metadata(row: Row, reserved: Sequence[str], known: Sequence[str] | None) -> int:
    for key in row.metadata:
        if not isinstance(key, str) or key in reserved:
            raise InvalidInput(f"row {row.id!r}: metadata cannot be called {key!r}", "metadata")
        if known is not None and key not in known:
            raise InvalidInput(
                f"row {row.id!r}: no field {key!r}; metadata may have {', '.join(known) or 'nothing'}",
                "metadata",
            )
    try:
        text = json.dumps(row.metadata, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"row {row.id!r}: metadata must be JSON values: {error}", "metadata") from None
    size = check_text(text, "metadata")
    if size > _MAX_METADATA_BYTES - 1024:
        raise InvalidInput(f"row {row.id!r}: metadata of {size} bytes; Milvus allows 64 KiB", "metadata")
    return size


def normalised(embeddings: Float32Array, embedding_size: int) -> Float32Array:
    """Query embeddings [Q, E], finite and not zero, scaled to norm 1.

    Raises:
        InvalidInput: the shape is another one, or a vector is zero or not finite.
    """
    array = np.asarray(embeddings, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != embedding_size or not len(array):
        raise InvalidInput(f"query embeddings have shape [Q, {embedding_size}], got {list(array.shape)}", "embedding")
    norms = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise InvalidInput("query embeddings must be finite and not zero", "embedding")
    unit: Float32Array = (array / norms).astype(np.float32)
    return unit


def batches(sizes: Sequence[int], rows: int, size: int) -> Iterator[slice]:
    """Slices of consecutive items of `sizes` bytes: each has at most `rows` items and `size` bytes, or is one item."""
    start = total = 0
    for stop, item in enumerate(sizes):
        if stop > start and (stop - start == rows or total + item > size):
            yield slice(start, stop)
            start, total = stop, 0
        total += item
    if len(sizes) > start:
        yield slice(start, len(sizes))
