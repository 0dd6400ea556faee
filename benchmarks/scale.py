"""How fast synthetic rows go from Parquet into a Milvus server, by batches and by bulk import.

    tests/milvus_standalone.sh .venv/bin/python -m benchmarks.scale [--rows 100000] [--by-batches 20000]

Embeddings and states are of D = E = 384, random, in int8. The last table is the verification: counts, cosines, recall.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import print_table
from phs_milvus.contract import state as state_codec
from phs_milvus.milvus.collection import FocusedCollection, connect
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.load import load
from phs_milvus.scale.parts import Picture, table_of
from phs_milvus.scale.places import Place
from phs_milvus.scale.verify import verify

D, ROWS_PER_PART, STATES = 384, 10_000, 1000
MODEL = ModelRecord("0" * 64, "synthetic", D, D, 6, 224, "int8")


def write(folder: Path, rows: int) -> None:
    """Parts of random rows; states repeat, because packing them is not what is measured."""
    rng = np.random.default_rng(0)
    packed = [state_codec.pack(state, "int8") for state in rng.normal(size=(STATES, 2, D))]
    for start in range(0, rows, ROWS_PER_PART):
        embeddings = rng.normal(size=(min(ROWS_PER_PART, rows - start), D)).astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        pictures = [
            Picture(f"{start + index:09d}.jpg", one, packed[index % STATES], f"{start + index:064x}", 640, 480)
            for index, one in enumerate(embeddings)
        ]
        Place.of(str(folder / f"{start:09d}.parquet"), "output").write_table(table_of(pictures, MODEL))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--by-batches", type=int, default=20_000)
    parser.add_argument("--milvus", default="http://127.0.0.1:19530")
    options = parser.parse_args()
    client = connect(options.milvus)
    table = []
    with tempfile.TemporaryDirectory() as temporary:
        for how, rows in (("batches", options.by_batches), ("bulk import", options.rows)):
            folder, name = Path(temporary, how.replace(" ", "_")), f"scale_{how.replace(' ', '_')}"
            write(folder, rows)
            collection = FocusedCollection.create(client, name, MODEL, index_type="HNSW", state_format="int8")
            staging = str(Path(temporary, "staging")) if how == "bulk import" else None
            report = load([str(folder)], collection, import_to=staging)
            found = verify([str(folder)], collection)
            table.append([how, rows, report.seconds, rows / report.seconds, found.least_cosine, found.recall])
            assert found.good, found
            client.drop_collection(name)
    print_table("Parquet -> Milvus", ["by", "rows", "s", "rows/s", "least cosine", "recall@10"], table)


if __name__ == "__main__":
    main()
