"""The JSON API: what it answers is what Python answers, and what is wrong has a name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import Box, Encoder, Focus, FocusedSearch, Point, Polygon
from phs_milvus.web.api.document import document
from tests.web.support import Site

BOX = [20, 30, 90, 100]


@pytest.fixture(scope="module")
def held(site: Site, photos: list[Path]) -> str:
    """The digest of a photo that was sent."""
    answer = site.post("/api/v1/pictures", photos[3].read_bytes())
    assert answer.status == 201 and answer.headers["location"] == f"/api/v1/pictures/{answer.json['picture']}"
    assert (answer.json["width"], answer.json["height"]) == (160, 120)
    return answer.json["picture"]


@pytest.fixture(scope="module")
def search(site: Site) -> FocusedSearch:
    return site.backend.ready().search


def test_info_says_what_there_is(site: Site, encoder: Encoder) -> None:
    info = site.get("/api/v1/info").json
    assert info["state"]["name"] == "ready" and info["version"] == 1
    assert info["collection"]["rows"] == 30 and info["collection"]["digests"] and info["collection"]["lite"]
    assert info["model"]["fingerprint"] == encoder.info.fingerprint and info["model"]["heads"] == 4


@pytest.mark.parametrize(
    ("asked", "prompt", "options"),
    [
        ([{"box": BOX}], Box(*BOX), {}),
        (
            [{"point": [50, 40]}, {"point": [60, 60], "radius": 9, "label": 0}],
            [Point(50, 40), Point(60, 60, 9, label=0)],
            {},
        ),
        ([{"polygon": [[10, 10], [90, 20], [50, 80]]}], Polygon([(10, 10), (90, 20), (50, 80)]), {"min_score": 0.2}),
        ([{"box": BOX}], Box(*BOX), {"score": "query_db", "limit": 3}),
        ([{"box": BOX}], Box(*BOX), {"filter": "width > 1", "candidates": 12}),
        ([], None, {"rerank": False}),
    ],
)
def test_search_is_that_of_python(
    site: Site, search: FocusedSearch, photos: list[Path], held: str, asked: list, prompt: object, options: dict
) -> None:
    body = {"picture": held, "prompt": asked, "fields": ["width"], **options}
    answer = site.post("/api/v1/search", body)
    assert answer.status == 200, answer.json
    expected = search.search(photos[3], prompt, exclude_query=True, output_fields=["width"], **options)
    hits = answer.json["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected] and hits
    np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in expected], atol=1e-3)  # it is held
    assert photos[3].name not in {hit["id"] for hit in hits}
    assert all(hit["fields"] == {"width": 160} for hit in hits)


def test_a_rows_own_picture_is_searched_with_and_focused_as_asked(
    site: Site, search: FocusedSearch, photos: list[Path]
) -> None:
    focus = {"heads": 2, "attention_shift": 0.4, "zooms": [0, 2], "ann_heads": None}
    answer = site.post("/api/v1/search", {"id": photos[5].name, "prompt": [{"box": BOX}], **focus})
    expected = search.search(photos[5], Box(*BOX), exclude_query=True, focus=Focus(2, 0.4, (0, 2), ann_heads=None))
    assert [hit["id"] for hit in answer.json["hits"]] == [hit.id for hit in expected]
    assert answer.json["query"]["head_weights"] == pytest.approx(expected.query.head_weights.tolist(), abs=1e-4)


def test_a_picture_made_smaller_leaves_out_the_row_of_its_original(site: Site, photos: list[Path], held: str) -> None:
    original = hashlib.sha256(photos[7].read_bytes()).hexdigest()
    ids = {
        with_original: {
            hit["id"]
            for hit in site.post(
                "/api/v1/search", {"picture": held, "limit": 30, **({"original": original} if with_original else {})}
            ).json["hits"]
        }
        for with_original in (False, True)
    }
    assert ids[False] - ids[True] == {photos[7].name}


def test_explain_is_that_of_the_encoder(site: Site, encoder: Encoder, photos: list[Path], held: str) -> None:
    seen = site.post("/api/v1/explain", {"picture": held, "prompt": [{"box": BOX}], "heads": 2}).json
    expected = encoder.explain(photos[3], Box(*BOX), focus=Focus.paper(2))
    assert seen["kept"] == expected.selected_heads and seen["region"] == [0, 0, 160, 120] and seen["grid"] == [4, 4]
    np.testing.assert_allclose(seen["attention"], expected.attention, atol=1e-3)
    np.testing.assert_allclose(seen["mask"], expected.mask, atol=1e-4)


def test_boxes_are_those_of_a_located_search(site: Site, search: FocusedSearch, photos: list[Path], held: str) -> None:
    ids = [path.name for path in photos[:3]]
    rows = site.post("/api/v1/locate", {"picture": held, "prompt": [{"box": BOX}], "ids": [*ids, "nowhere"]}).json[
        "rows"
    ]
    result = search.search(photos[3], Box(*BOX), limit=30).locate(photos[0].parent)
    expected = {hit.id: [list(box.region) for box in hit.boxes] for hit in result}
    assert {row["id"]: [each["box"] for each in row["boxes"]] for row in rows[:3]} == {
        name: expected[name] for name in ids
    }
    assert "nowhere" in rows[3]["error"]


def test_the_third_stage_looks_into_rows(site: Site, held: str) -> None:
    body = {"picture": held, "prompt": [{"box": BOX}], "localize": 4, "limit": 6}
    hits = site.post("/api/v1/search", body).json["hits"]
    assert sorted(hit["localized_score"] is not None for hit in hits) == [False] * 2 + [True] * 4


def test_rows_are_listed_in_pages(site: Site, photos: list[Path]) -> None:
    first = site.get("/api/v1/rows?limit=20").json
    rest = site.get(f"/api/v1/rows?limit=20&after={first['after']}").json
    assert first["ids"] + rest["ids"] == [path.name for path in photos] and rest["after"] is None
    row = site.get(f"/api/v1/rows/{photos[0].name}").json
    assert (row["width"], row["height"]) == (160, 120) and row["fields"]["path"] == str(photos[0])


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"limit": 0}, "limit", "1 to 16384"),
        ({"limit": 2.5}, "limit", "integer"),
        ({"limit": True}, "limit", "integer"),
        ({"limt": 3}, "limt", "no such member"),
        ({"score": "best"}, "score", "blend"),
        ({"heads": "some"}, "heads", "all"),
        ({"heads": 99}, "focus", "4 heads"),
        ({"attention_shift": 2}, "attention_shift", "0 to 1"),
        ({"zooms": [0.5]}, "zooms", "0.5"),
        ({"zooms": []}, "zooms", "1 to 8"),
        ({"filter": "width >"}, "filter", "width >"),
        ({"fields": ["no such"]}, "output_fields", "no such"),
        ({"prompt": [{"box": [1, 2, 3]}]}, "prompt[0]", "4 to 4"),
        ({"prompt": [{"box": [5, 5, 2, 2]}]}, "prompt[0]", "greater"),
        ({"prompt": [{"point": [5, 5]}, {"circle": 3}]}, "prompt[1]", "point, box"),
        ({"prompt": [{"box": [500, 500, 600, 600]}]}, "prompt", "outside"),
        ({"picture": None, "id": None}, "picture", "either"),
    ],
)
def test_what_is_wrong_has_a_name(site: Site, held: str, change: dict, field: str, words: str) -> None:
    answer = site.post("/api/v1/search", {"picture": held, "prompt": [{"box": BOX}], **change})
    assert answer.status == 400 and answer.headers["content-type"] == "application/problem+json"
    assert answer.json["field"] == field and words in answer.json["detail"]


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b'{"limit": NaN}', b"\xff\xfe"])
def test_bodies_that_are_no_json_object(site: Site, body: bytes) -> None:
    answer = site.post("/api/v1/search", body or b" ")
    assert answer.status == 400 and answer.json["field"] == "body"


def test_what_is_not_there_is_404(site: Site) -> None:
    for body in ({"id": "nowhere.jpg"}, {"picture": "0" * 64}):
        answer = site.post("/api/v1/search", body)
        assert answer.status == 404 and answer.json["field"] == next(iter(body))


def test_the_document_has_every_path_and_every_member(site: Site) -> None:
    described = site.get("/api/v1/openapi.json").json
    assert described == document()
    members = described["paths"]["/api/v1/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    answer = site.post("/api/v1/search", {"no": 1}).json["detail"]
    assert set(members["properties"]) == set(answer.partition("there are: ")[2].split(", "))
    page = site.get("/api").body.decode()
    assert all(path in page for path in described["paths"])
