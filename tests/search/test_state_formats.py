"""Search of a collection of int8 states, and of one that holds both formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, connect, ingest_folder
from phs_milvus.contract import state as state_codec
from phs_milvus.milvus.connection import close

PROMPT = Box(20, 20, 90, 100)


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[object]:
    client = connect(milvus_uri)
    yield client
    close(client)


def scores_of(collection: FocusedCollection, encoder: Encoder, image: Path) -> dict[str, float]:
    result = FocusedSearch(collection, encoder).search(image, PROMPT, limit=41, score="query_db")
    return {hit.id: hit.score for hit in result}


def test_scores_are_those_of_the_stored_numbers(client: object, encoder: Encoder, photos: list[Path]) -> None:
    found, expected = {}, {}
    for kind in state_codec.STATE_FORMATS:
        collection = FocusedCollection.create(client, f"of_{kind}", encoder.info, overwrite=True, state_format=kind)
        ingest_folder(photos[0].parent, collection, encoder, progress=False)
        found[kind] = scores_of(collection, encoder, photos[7])
        names = [path.name for path in photos]
        texts = [row["phs_state"] for row in collection.get(names, ["phs_state"])]
        query = FocusedSearch(collection, encoder).search(photos[7], PROMPT, limit=1).query
        states = state_codec.unpack(texts, encoder.info.hidden_size)
        scores = encoder.rerank(query.query_db_embedding[None], query.head_weights[None], states)[0]
        expected[kind] = dict(zip(names, scores, strict=True))
        assert found[kind] == pytest.approx(expected[kind], abs=1e-6)
    # Only the rounding differs.
    assert found["int8"] == pytest.approx(found["float16"], abs=0.01) and found["int8"] != found["float16"]

    # A row of the other format is read beside them.
    both = FocusedCollection.open(client, "of_float16")
    (row,) = client.get("of_float16", [photos[3].name], output_fields=["*"])
    exact = state_codec.unpack([row["phs_state"]], encoder.info.hidden_size)[0]
    row["phs_state"] = state_codec.pack(exact, "int8")
    client.upsert("of_float16", [row])
    assert both.count() == len(photos)
    mixed = scores_of(both, encoder, photos[7])
    assert mixed.pop(photos[3].name) == pytest.approx(found["int8"][photos[3].name], abs=1e-6)
    assert mixed == pytest.approx({key: found["float16"][key] for key in mixed}, abs=1e-6)


def test_a_folder_that_was_moved_keeps_its_states(
    client: object, encoder: Encoder, photos: list[Path], tmp_path: Path
) -> None:
    collection = FocusedCollection.create(client, "moved", encoder.info, overwrite=True, state_format="int8")
    (tmp_path / "before").mkdir()
    for path in photos[:5]:
        (tmp_path / "before" / path.name).write_bytes(path.read_bytes())
    ingest_folder(tmp_path / "before", collection, encoder, progress=False)
    names = [path.name for path in photos[:5]]
    before = collection.get(names, ["phs_state"])
    (tmp_path / "before").rename(tmp_path / "after")
    report = ingest_folder(tmp_path / "after", collection, encoder, progress=False)
    assert report.encoded == 0 and report.skipped_unchanged == 5
    assert collection.get(names, ["phs_state"]) == before
    assert collection.get(names[:1], ["path"])[0]["path"] == str(tmp_path / "after" / names[0])
