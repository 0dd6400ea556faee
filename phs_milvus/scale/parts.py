"""The Parquet files between encoders and Milvus: one row a picture, some thousand rows a file ("part").

    column        type                      what
    key           string, or int64          the row's id in Milvus; of `scale encode`, the path below INPUT
    embedding     fixed_size_list<float>[E] float32, of norm 1
    state         string                    packed (phs_milvus.contract.state); null where a row has none
    state_format  string                    "float16" or "int8"; null where there is no state
    digest        string                    sha256 of the picture file in hex, or ""
    width, height int32                     pixels of the upright picture; null where they are not known
    metadata      string                    the other fields of the row, a JSON object

The schema's metadata has the model that made them, under "phs", as a collection's description has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import InvalidInput, ModelMismatch, PhsError, shown
from phs_milvus.contract.types import Float32Array
from phs_milvus.milvus.rows import Id, ModelRecord
from phs_milvus.scale.places import NEEDS_PYARROW, Place

ROWS_PER_READ = 4096  # of which embeddings and states are in memory


@dataclass(eq=False)
class Picture:
    """One row of a part.

    Attributes:
        key: the row's id.
        embedding: float32 [E], of norm 1.
        state: packed, or None.
        digest: sha256 of the file in hex, or "".
        width, height: pixels of the upright picture, or None.
        metadata: the other fields, JSON values by name.
    """

    key: Id
    embedding: Float32Array
    state: str | None
    digest: str = ""
    width: int | None = None
    height: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def table_of(pictures: Sequence[Picture], model: ModelRecord, *, integer_keys: bool = False) -> Any:
    """A pyarrow.Table of pictures; see the module's text."""
    import pyarrow as pa

    embeddings = np.array([one.embedding for one in pictures], np.float32).reshape(-1)
    sizes = [(one.width, one.height) for one in pictures]
    formats = [None if one.state is None else state_codec.format_of(one.state, model.hidden_size) for one in pictures]
    columns = {
        "key": pa.array([one.key for one in pictures], pa.int64() if integer_keys else pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeddings, pa.float32()), model.embedding_size),
        "state": pa.array([one.state for one in pictures], pa.string()),
        "state_format": pa.array(formats, pa.string()),
        "digest": pa.array([one.digest for one in pictures], pa.string()),
        "width": pa.array([width for width, _ in sizes], pa.int32()),
        "height": pa.array([height for _, height in sizes], pa.int32()),
        "metadata": pa.array([json.dumps(one.metadata, ensure_ascii=False) for one in pictures], pa.string()),
    }
    return pa.table(columns).replace_schema_metadata({"phs": model.to_json()})


def parts_at(paths: Iterable[str]) -> list[Place]:
    """The Parquet files that are named, or in a folder that is named, or in its folder "parts".

    Raises:
        InvalidInput: there is none.
    """
    found: list[Place] = []
    for text in paths:
        place = Place.of(text, "parquet")
        files = [place] if text.endswith(".parquet") else place.files(".parquet") or (place / "parts").files(".parquet")
        if not files:
            raise InvalidInput(f"there is no Parquet file at {shown(text)}", "parquet")
        found += files
    return found


def model_of(parts: Sequence[Place]) -> ModelRecord:
    """The model that made all these parts; of their state formats, the one with the larger states.

    Raises:
        InvalidInput: a file is not a part.
        ModelMismatch: they are of several models, whose embeddings cannot be compared.
    """
    found: ModelRecord | None = None
    for part in parts:
        record = _model(part)
        if found is not None and record.fingerprint != found.fingerprint:
            raise ModelMismatch(
                f"{shown(parts[0].path)} was made by {found.model_id!r} (fingerprint {found.fingerprint[:16]}), "
                f"{shown(part.path)} by {record.model_id!r} ({record.fingerprint[:16]}); load them into collections "
                "of their own"
            )
        found = record if found is None or record.state_format == "float16" else found
    assert found is not None
    return found


def _model(part: Place) -> ModelRecord:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise PhsError(NEEDS_PYARROW) from None
    try:
        metadata = pq.read_schema(part.path, filesystem=part.filesystem).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidInput(f"{shown(part.path)} is no Parquet file: {shown(error)}", "parquet") from None
    record = ModelRecord.from_json(metadata.get(b"phs", b"").decode())
    if record is None:
        raise InvalidInput(
            f"{shown(part.path)} does not say which model made it; phs-milvus scale encode and export write such files",
            "parquet",
        )
    return record


def rows_of(part: Place) -> int:
    """How many rows a part has."""
    import pyarrow.parquet as pq

    with part.filesystem.open_input_file(part.path) as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def keys_of(part: Place) -> Any:
    """The keys of a part or of an error table, a pyarrow.ChunkedArray."""
    import pyarrow.parquet as pq

    return pq.read_table(part.path, filesystem=part.filesystem, columns=["key"])["key"]


def read(part: Place) -> Iterator[list[Picture]]:
    """The rows of a part, some thousand at a time."""
    import pyarrow.parquet as pq

    with part.filesystem.open_input_file(part.path) as file:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_READ):
            columns = [batch[name].to_pylist() for name in ("key", "state", "digest", "width", "height", "metadata")]
            embeddings = embeddings_of(batch)
            yield [
                Picture(key, embedding, state, digest or "", width, height, json.loads(metadata or "{}"))
                for embedding, key, state, digest, width, height, metadata in zip(embeddings, *columns, strict=True)
            ]


def embeddings_of(batch: Any) -> Float32Array:
    """The embeddings of a pyarrow.RecordBatch, float32 [n, E]."""
    column = batch["embedding"]
    flat = np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
    return flat.reshape(len(column), -1)
