"""Search over every state in a server's file: the same hits as two stages with every row as a candidate."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import (
    Box,
    CollectionError,
    Encoder,
    Examples,
    Focus,
    FocusedCollection,
    FocusedSearch,
    InvalidInput,
    Query,
    StoredImage,
    connect,
    ingest_folder,
)
from phs_milvus.milvus.connection import MilvusClient, close
from phs_milvus.milvus.export_states import export_states
from phs_server.app import ServerThread
from phs_server.config import Settings

PROMPT = Box(20, 20, 100, 90)


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[MilvusClient]:
    client = connect(milvus_uri)
    yield client
    close(client)


@pytest.fixture(scope="module")
def collection(client: MilvusClient, encoder: Encoder, photos: list[Path]) -> FocusedCollection:
    collection = FocusedCollection.create(client, "scanned", encoder.info, overwrite=True)
    ingest_folder(photos[0].parent, collection, encoder, progress=False)
    return collection


@pytest.fixture(scope="module")
def search(
    collection: FocusedCollection, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FocusedSearch]:
    """A search whose server has the states of all 41 photos."""
    file = tmp_path_factory.mktemp("states") / "scanned.states"
    assert export_states(collection, file).rows == 41
    settings = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=2, states=str(file))
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield FocusedSearch(collection, encoder)


@pytest.mark.parametrize("score", ["blend", "query_db"])
@pytest.mark.parametrize("focus", [Focus(), Focus(zoom=(1.5, 1.0))], ids=["one zoom", "two zooms"])
def test_the_hits_are_those_of_every_candidate(
    search: FocusedSearch, photos: list[Path], score: str, focus: Focus
) -> None:
    options = {"limit": 12, "score": score, "focus": focus, "output_fields": ["path", "width"]}
    scanned = search.search(photos[3], PROMPT, stage_one="scan", **options)
    every = search.search(photos[3], PROMPT, candidates=41, **options)
    assert [hit.id for hit in scanned] == [hit.id for hit in every]
    assert [hit.fields for hit in scanned] == [hit.fields for hit in every]
    for name in ("score", "query_db_score", "ann_score", "blend_score"):
        np.testing.assert_allclose([getattr(h, name) for h in scanned], [getattr(h, name) for h in every], atol=1e-5)
    assert timedelta(0) < datetime.now(timezone.utc) - scanned.scanned_at < timedelta(minutes=10)
    assert every.scanned_at is None


def test_examples_and_counter_examples(search: FocusedSearch, photos: list[Path]) -> None:
    question = Examples([Query(photos[1], PROMPT), Query(photos[2], PROMPT)], [Query(photos[4], PROMPT)])
    (scanned,) = search.search_many([question], limit=9, stage_one="scan")
    (every,) = search.search_many([question], limit=9, candidates=41)
    assert [hit.id for hit in scanned] == [hit.id for hit in every]
    np.testing.assert_allclose([hit.score for hit in scanned], [hit.score for hit in every], atol=1e-5)


def test_with_a_filter_only_its_rows_are_looked_at(search: FocusedSearch, photos: list[Path]) -> None:
    ids = [path.name for path in photos[5:12]]
    taken = f"id in {ids}".replace("'", '"')
    scanned = search.search(photos[3], PROMPT, filter=taken, stage_one="scan", limit=20)
    every = search.search(photos[3], PROMPT, filter=taken, candidates=41, limit=20)
    assert [hit.id for hit in scanned] == [hit.id for hit in every] and len(scanned) == 7
    assert not len(search.search(photos[3], filter='id == "nobody"', stage_one="scan"))
    with pytest.raises(InvalidInput) as caught:
        search.search(photos[3], filter="id ===", stage_one="scan")
    assert caught.value.field == "filter"


def test_the_query_is_left_out(search: FocusedSearch, photos: list[Path]) -> None:
    """Both files of its bytes."""
    scanned = search.search(StoredImage(photos[0].name), PROMPT, exclude_query=True, stage_one="scan", limit=41)
    assert len(scanned) == 39 and not {photos[0].name, "copy.jpg"} & {hit.id for hit in scanned}
    assert all("digest" not in hit.fields for hit in scanned)


def test_what_changed_since_is_not_seen(
    client: MilvusClient, search: FocusedSearch, encoder: Encoder, photos: list[Path], collection: FocusedCollection
) -> None:
    """And a row that was deleted is no hit. The row is put back in the end."""
    gone = photos[7].name
    (row,) = collection.get([gone], ["embedding", "phs_state"])
    collection.delete([gone])
    try:
        scanned = search.search(photos[7], PROMPT, stage_one="scan", limit=41)
        assert len(scanned) == 40 and gone not in {hit.id for hit in scanned}
    finally:
        ingest_folder(photos[0].parent, collection, encoder, progress=False)
    assert row["id"] in {hit.id for hit in search.search(photos[7], PROMPT, stage_one="scan", limit=41)}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("stage_one", {"stage_one": "both"}),
        ("stage_one", {"score": "ann"}),
        ("partition_names", {"partition_names": ["_default"]}),
        ("search_params", {"search_params": {"ef": 100}}),
        ("group_by_field", {"group_by_field": "path"}),
        ("candidates", {"candidates": 5}),
    ],
)
def test_what_a_scan_cannot_do_is_refused(
    search: FocusedSearch, photos: list[Path], field: str, changes: dict[str, object]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        search.search(photos[3], PROMPT, **{"stage_one": "scan", **changes})
    assert caught.value.field == field


def test_states_of_another_collection_are_refused(
    client: MilvusClient, search: FocusedSearch, photo_search: FocusedSearch, photos: list[Path]
) -> None:
    other = FocusedSearch(photo_search._collection, search._encoder)
    with pytest.raises(CollectionError, match="has the states of collection 'scanned', and 'photos' is searched"):
        other.search(photos[3], PROMPT, stage_one="scan")
    with pytest.raises(InvalidInput, match="phs-server --states FILE"):
        photo_search.search(photos[3], PROMPT, stage_one="scan")
