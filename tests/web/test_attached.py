"""The page of a collection that somebody else made: long integers as keys, pictures where its attachment says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pymilvus import DataType

from phs_milvus import Encoder, FocusedCollection, backfill
from tests.web.support import Site

FIRST = 2**60  # as Milvus makes them up; JavaScript takes it for a neighbour


@pytest.fixture(scope="module")
def products(site: Site, serve: Callable[..., Site], encoder: Encoder, photos: list[Path]) -> Site:
    client = site.backend.ready().collection.client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("sku", DataType.INT64, is_primary=True)
    schema.add_field("vec", DataType.FLOAT_VECTOR, dim=48)
    schema.add_field("file", DataType.VARCHAR, max_length=200)
    index = client.prepare_index_params()
    index.add_index("vec", index_type="FLAT", metric_type="COSINE")
    client.create_collection("products", schema=schema, index_params=index)
    rows = [
        {"sku": FIRST + number, "vec": encoder.encode(path).embedding, "file": path.name}
        for number, path in enumerate(photos[:12])
    ]
    client.insert("products", rows)
    collection = FocusedCollection.attach(client, "products", model=encoder.info)
    backfill(collection, encoder, photos[0].parent, image_field="file", progress=False)
    return serve("products")


def test_ids_are_texts_of_every_digit(products: Site) -> None:
    ids = products.get("/api/v1/rows").json["ids"]
    assert ids == [str(FIRST + number) for number in range(12)]
    answer = products.post("/api/v1/search", {"id": ids[4], "prompt": [{"box": [20, 20, 90, 90]}], "fields": ["*"]})
    hits = answer.json["hits"]
    assert answer.status == 200 and {hit["id"] for hit in hits} < set(ids) and ids[4] not in {hit["id"] for hit in hits}
    assert hits[0]["fields"]["sku"] == hits[0]["id"] and hits[0]["query_db_score"] is not None
    boxes = products.post("/api/v1/locate", {"id": ids[4], "prompt": [{"box": [20, 20, 90, 90]}], "ids": ids[:2]}).json
    assert [row["id"] for row in boxes["rows"]] == ids[:2] and all(row["boxes"] for row in boxes["rows"])


def test_pictures_are_where_the_attachment_says(products: Site) -> None:
    assert products.get(f"/image/{FIRST + 3}?size=256").headers["content-type"] == "image/jpeg"
    row = products.get(f"/api/v1/rows/{FIRST + 3}").json
    assert (row["width"], row["height"]) == (160, 120) and row["id"] == str(FIRST + 3)
    assert products.get(f"/image/{FIRST + 99}").status == 404
    wrong = products.get("/image/a.jpg")
    assert wrong.status == 400 and "whole number" in wrong.json["detail"]
