"""What strangers sent to the page and its API that was once answered with a failure of the server's own."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from pymilvus import DataType

from phs_milvus import Encoder, FocusedCollection, backfill
from phs_milvus.web.settings import WebSettings
from tests.web.support import Site

HUGE = "1" + "0" * 400


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "//]"])
def test_an_origin_that_is_no_url_is_another_site(site: Site, origin: str) -> None:
    assert site.get("/", Origin=origin).status == 403


@pytest.mark.parametrize("member", ["limit", "heads", "localize", "boxes", "min_score", "zooms"])
def test_numbers_beyond_floats_are_named(site: Site, member: str) -> None:
    value = f"[{HUGE}]" if member == "zooms" else HUGE
    answer = site.post("/api/v1/search", f'{{"id": "x", "{member}": {value}}}'.encode())
    assert answer.status == 400 and answer.json["field"].startswith(member) and len(answer.body) < 500


@pytest.mark.parametrize("limit", ["9" * 5000, "0", "201", "-1", "²", "٣", "1 "])
def test_a_limit_of_rows_is_a_plain_number(site: Site, limit: str) -> None:
    answer = site.get(f"/api/v1/rows?limit={quote(limit)}")
    assert answer.status == 400 and answer.json["field"] == "limit"
    assert len(site.get("/api/v1/rows?limit=7").json["ids"]) == 7


def test_a_login_never_leads_to_what_is_no_path(serve: Callable[..., Site], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret-token\n")
    site = serve(settings=WebSettings(port=0, token_file=str(tokens)))
    for target in ("//[", "http://[", "//evil.example", "/\t/evil.example", "/\\evil.example"):
        assert site.get(f"/login?next={quote(target, safe='')}").status == 200
        entered = site.post("/login", f"token=secret-token&next={quote(target, safe='')}".encode())
        assert entered.status == 303 and entered.headers["location"] == "/"


def test_shapes_that_would_take_minutes_are_refused_at_once(site: Site) -> None:
    drawn = io.BytesIO()
    Image.new("L", (9000, 9000), 7).save(drawn, "JPEG")
    digest = site.post("/api/v1/pictures", drawn.getvalue()).json["picture"]
    triangle = {"polygon": [[0, 0], [9000, 8000], [0, 9000]]}
    zigzag = {"polygon": [[number % 9000, 9000 * (number % 2)] for number in range(9000)]}
    mask = {"mask": {"size": [9000, 9000], "counts": [0, 81_000_000]}}
    for prompt in ([triangle] * 100, [zigzag], [mask] * 100, [{"point": [9, 9], "radius": 1e308}] * 100):
        began = time.monotonic()
        answer = site.post("/api/v1/search", {"picture": digest, "prompt": prompt})
        assert answer.status == 400 and answer.json["field"] == "prompt" and "take too long" in answer.json["detail"]
        assert time.monotonic() - began < 5
    lasso = {"polygon": [[1000 + number % 500, 1000 + number] for number in range(4000)]}
    assert site.post("/api/v1/search", {"picture": digest, "prompt": [lasso]}).status == 200


@pytest.fixture(scope="module")
def numbered(site: Site, serve: Callable[..., Site], encoder: Encoder, photos: list[Path]) -> Iterator[Site]:
    """A collection with whole numbers as ids, and a field of floats that are none."""
    client = site.backend.ready().collection.client
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("sku", DataType.INT64, is_primary=True)
    schema.add_field("vec", DataType.FLOAT_VECTOR, dim=48)
    schema.add_field("file", DataType.VARCHAR, max_length=200)
    schema.add_field("price", DataType.FLOAT)
    index = client.prepare_index_params()
    index.add_index("vec", index_type="FLAT", metric_type="COSINE")
    client.create_collection("numbered", schema=schema, index_params=index)
    prices = (float("nan"), float("inf"), 1.5)
    rows = [
        {"sku": number, "vec": encoder.encode(photos[number]).embedding, "file": photos[number].name, "price": price}
        for number, price in enumerate(prices)
    ]
    client.insert("numbered", rows)
    collection = FocusedCollection.attach(client, "numbered", model=encoder.info)
    backfill(collection, encoder, photos[0].parent, image_field="file", progress=False)
    yield serve("numbered")


@pytest.mark.parametrize("text", ["²", "--5", "-", "9" * 19, "9" * 5000, str(2**63), "٣"])
def test_an_id_that_is_no_whole_number_is_the_callers_mistake(numbered: Site, text: str) -> None:
    for path in (f"/image/{quote(text)}", f"/api/v1/rows/{quote(text)}", f"/api/v1/rows?after={quote(text)}"):
        answer = numbered.get(path)
        assert answer.status == 400 and "whole number" in answer.json["detail"], path
    assert numbered.post("/api/v1/search", {"id": text[:4000]}).status == 400


def test_floats_that_json_does_not_have_are_null(numbered: Site) -> None:
    prices = [numbered.get(f"/api/v1/rows/{number}").json["fields"]["price"] for number in range(3)]
    assert prices == [None, None, 1.5]
    assert numbered.post("/api/v1/search", {"id": "2", "fields": ["price"]}).status == 200
