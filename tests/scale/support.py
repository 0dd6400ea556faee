"""Parts of Parquet that are made here, and what is in a folder of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from phs_milvus.contract import state as state_codec
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.parts import Picture, table_of
from phs_milvus.scale.places import Place
from tests.milvus.support import INFO, make_rows


def write_parts(folder: Path, counts: list[int], state_format: str = "int8", info: object = INFO) -> list[Picture]:
    """Parts of so many random rows each; returns the rows."""
    model = ModelRecord.of(info, state_format)
    pictures: list[Picture] = []
    for number, count in enumerate(counts):
        rows = make_rows([f"{number}/{index:05d}.jpg" for index in range(count)], seed=number)
        part = [
            Picture(
                row.id,
                row.embedding,
                state_codec.pack(row.state, state_format),
                row.digest,
                640,
                480,
                {"album": number},
            )
            for row in rows
        ]
        Place.of(str(folder / "parts" / f"{number:03d}.parquet"), "output").write_table(table_of(part, model))
        pictures += part
    return pictures


def table_at(folder: Path) -> dict[str, dict]:
    """All rows of a folder of Parquet files by key; a key that is there twice fails."""
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    keys = [row["key"] for row in rows]
    assert len(keys) == len(set(keys)), "a key is there twice"
    return dict(zip(keys, rows, strict=True))


def unit(row: dict) -> np.ndarray:
    return np.array(row["embedding"], np.float32)
