"""Pointing at things in a collection that somebody else made, through its side collection."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus import (
    Box,
    CollectionError,
    Encoder,
    FocusedCollection,
    FocusedSearch,
    ImageError,
    InvalidInput,
    ModelMismatch,
    StoredImage,
    backfill,
    connect,
)
from phs_milvus.milvus.connection import close
from phs_milvus.milvus.side import Attachment, NewState

PROMPT = Box(20, 20, 100, 90)


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[MilvusClient]:
    client = connect(milvus_uri)
    yield client
    close(client)


@pytest.fixture(scope="module")
def products(client: MilvusClient, encoder: Encoder, photos: list[Path]) -> Iterator[FocusedCollection]:
    """All photos but the last two under keys 0, 1, ...; all of them have their states."""
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("sku", DataType.INT64, is_primary=True)
    schema.add_field("vec", DataType.FLOAT_VECTOR, dim=48)
    schema.add_field("file", DataType.VARCHAR, max_length=200)
    index = client.prepare_index_params()
    index.add_index("vec", index_type="FLAT", metric_type="COSINE")
    client.create_collection("products", schema=schema, index_params=index)
    paths = photos[:-2]
    embeddings = [encoder.encode(path).embedding for path in paths]
    rows = [{"sku": key, "vec": vector, "file": paths[key].name} for key, vector in enumerate(embeddings)]
    client.insert("products", rows)
    collection = FocusedCollection.attach(client, "products", model=encoder.info, state_format="float16")
    backfill(collection, encoder, photos[0].parent, image_field="file", progress=False)
    yield FocusedCollection.open(client, "products")
    for name in ("products", "products_phs"):
        client.drop_collection(name)


def test_it_ranks_as_a_collection_of_our_own_does(
    products: FocusedCollection, photo_search: FocusedSearch, encoder: Encoder, photos: list[Path]
) -> None:
    ours = photo_search.search(photos[3], PROMPT, limit=12, candidates=41)
    theirs = FocusedSearch(products, encoder).search(photos[3], PROMPT, limit=10, candidates=39)
    there = {path.name: key for key, path in enumerate(photos[:-2])}
    expected = [(there[hit.id], hit.score) for hit in ours if hit.id in there][:10]
    assert [hit.id for hit in theirs] == [key for key, _ in expected]
    np.testing.assert_allclose([hit.score for hit in theirs], [score for _, score in expected], atol=1e-4)
    assert theirs.without_state == 0


def test_rows_are_queries_and_pictures(products: FocusedCollection, encoder: Encoder, photos: list[Path]) -> None:
    search = FocusedSearch(products, encoder)
    result = search.search(StoredImage(7), PROMPT, limit=3)
    assert result[0].id == 7
    assert Path(str(search.file_of(StoredImage(7)))) == photos[7]
    located = result.locate()
    assert all(hit.location is not None and hit.boxes for hit in located)
    with pytest.raises(InvalidInput, match="no row with id '1000'"):
        search.search(StoredImage(1000))


def test_the_query_itself_is_left_out_by_its_digest(
    products: FocusedCollection, encoder: Encoder, photos: list[Path]
) -> None:
    search = FocusedSearch(products, encoder)
    assert search.search(photos[5], limit=1)[0].id == 5
    result = search.search(photos[5], limit=5, exclude_query=True)
    assert 5 not in [hit.id for hit in result] and len(result) == 5


def test_pictures_at_urls(products: FocusedCollection, encoder: Encoder, photos: list[Path]) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(photos[0].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        before = products.side.attachment
        try:
            report = backfill(products, encoder, f"http://127.0.0.1:{server.server_port}/{{file}}", progress=False)
            assert report.fitting == len(photos) - 2
            again = FocusedCollection.open(products.client, "products")
            result = FocusedSearch(again, encoder).search(StoredImage(2), PROMPT, limit=2).locate()
            assert result[0].id == 2 and all(hit.boxes for hit in result)
        finally:
            products.side.remember(before)
            server.shutdown()


def test_states_of_another_model_are_noticed(products: FocusedCollection, encoder: Encoder, photos: list[Path]) -> None:
    """The states lie with the right embeddings, but were made from other pictures."""
    rows = products.get(list(range(10)), ["vec"])
    rng = np.random.default_rng(0)
    wrong = [NewState(row["sku"], rng.normal(size=(2, 48)).astype(np.float16), row["vec"], "0" * 64) for row in rows]
    fresh = FocusedCollection.open(products.client, "products")
    right = fresh.side.read(list(range(40)))
    products.side.write(wrong)
    try:
        products.side.delete(list(range(10, 39)))
        with pytest.raises(ModelMismatch, match="10 of 10 states looked at do not give the embedding"):
            FocusedSearch(FocusedCollection.open(products.client, "products"), encoder)
    finally:
        products.side.delete(list(range(39)))
        assert right[0].state
        backfill(products, encoder, progress=False)


def test_embeddings_that_changed_are_noticed(products: FocusedCollection, encoder: Encoder) -> None:
    """The owner filled the collection anew, and the states are of the old rows."""
    rows = products.get(list(range(39)), ["*", "vec"])
    products.client.upsert("products", [row | {"vec": -np.array(row["vec"])} for row in rows])
    try:
        with pytest.raises(ModelMismatch, match="16 of 16 rows looked at have another embedding.*phs-milvus attach"):
            FocusedSearch(FocusedCollection.open(products.client, "products"), encoder)
    finally:
        products.client.upsert("products", rows)


def test_pictures_on_another_machine_are_no_reason_not_to_search(
    products: FocusedCollection, encoder: Encoder, photos: list[Path], tmp_path: Path
) -> None:
    before = products.side.attachment
    products.side.remember(Attachment("vec", "file", str(tmp_path / "not here")))
    try:
        collection = FocusedCollection.open(products.client, "products")
        result = FocusedSearch(collection, encoder).search(photos[3], PROMPT, limit=2)
        assert len(result) == 2
        assert all("image_root" in str(hit.location_error) for hit in result.locate())
        with pytest.raises(ImageError, match="not here is no folder.*image_root"):
            FocusedSearch(collection, encoder).search(StoredImage(3))
        here = FocusedSearch(collection, encoder, image_root=photos[0].parent)
        assert here.search(StoredImage(3), PROMPT, limit=2).locate()[0].boxes
    finally:
        products.side.remember(before)


def test_an_attachment_without_a_single_state_is_not_searched(products: FocusedCollection, encoder: Encoder) -> None:
    """To make the states was refused, perhaps, and then the embeddings are of another model."""
    products.side.delete(list(range(39)))
    try:
        with pytest.raises(CollectionError, match="none of its rows has a state yet; run phs-milvus attach products"):
            FocusedSearch(FocusedCollection.open(products.client, "products"), encoder)
    finally:
        backfill(products, encoder, progress=False)
