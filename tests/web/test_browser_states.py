"""What people meet beside the sunny day: nothing there, something away, huge, broken or slow; and the login."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phs_milvus import Encoder, FocusedCollection, ModelMismatch, Row
from phs_milvus.contract.errors import EncoderUnavailable
from phs_milvus.web.settings import WebSettings
from tests.servers import REPO
from tests.web.support import Site, open_encoder

AXE = REPO / ".venv/axe/node_modules/axe-core/axe.min.js"
PICTURE = "image-0004.jpg"
MANY = 10_000


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """open_page(url, **options): a new page of the browser; none may report an error of its own."""
    contexts, faults = [], []

    def open_page(url: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def drop(page: Any, name: str, data: bytes) -> None:
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/jpeg", "buffer": data})


def test_an_empty_collection_says_how_to_fill_it(serve: Callable[..., Site], open_page: Callable[..., Any]) -> None:
    page = open_page(serve("empty").url)
    page.wait_for_selector("text=This collection is empty")
    assert "phs-milvus ingest" in page.locator("#browse pre").inner_text()


@pytest.fixture(scope="module")
def many(serve: Callable[..., Site], encoder: Encoder) -> Site:
    """A collection of 10,000 rows without pictures."""
    client = serve().backend.ready().collection.client
    collection = FocusedCollection.create(client, "many", encoder.info)
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(MANY, encoder.info.embedding_size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    states = rng.normal(size=(MANY, 2, encoder.info.hidden_size)).astype(np.float16)
    collection.insert([Row(f"row-{n:05d}", embeddings[n], states[n]) for n in range(MANY)])
    return serve("many")


def test_ten_thousand_hits_without_pictures(many: Site, open_page: Callable[..., Any], photos: list[Path]) -> None:
    page = open_page(f"{many.url}/?limit={MANY}&boxes=false")
    page.wait_for_selector("#gallery .look.missing")
    page.locator("#file").set_input_files(photos[0])
    page.wait_for_selector("#count:has-text('10,000 hits')", timeout=60_000)
    first = page.locator("#results .card").count()
    assert first < 200, "cards are made as they come near the window"
    page.wait_for_selector("#results .look.missing")
    page.locator("#results .card").last.scroll_into_view_if_needed()
    page.locator("#results .card").nth(first).wait_for(state="attached")


def test_a_hundred_megapixels_are_made_smaller_and_the_prompt_with_them(
    site: Site, open_page: Callable[..., Any]
) -> None:
    page = open_page(site.url)
    page.wait_for_selector("#gallery .card")
    huge = Image.new("RGB", (12_000, 8_400), "navy")
    with (
        page.expect_response("**/api/v1/pictures", timeout=60_000) as sent,
        page.expect_response("**/api/v1/search", timeout=60_000) as found,
    ):
        drop(page, "huge.jpg", encoded(huge, quality=30))
    small = sent.value.json()
    assert small["width"] == 3072 and found.value.ok
    assert len(json.loads(found.value.request.post_data)["original"]) == 64
    box = page.locator("#world").bounding_box()
    with page.expect_request("**/api/v1/search") as found:
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    (prompt,) = json.loads(found.value.post_data)["prompt"]
    assert prompt["point"] == pytest.approx([small["width"] / 2, small["height"] / 2], abs=8)
    page.locator("#copy-button").click()
    x, y = page.locator("#dialog pre").inner_text().partition("Point(")[2].partition(")")[0].split(", ")
    assert (float(x), float(y)) == pytest.approx((6000, 4200), abs=40), "commands are about the file that people have"


def test_a_portrait_is_pointed_at_upright(site: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(site.url)
    page.wait_for_selector("#gallery .card")
    exif = Image.Exif()
    exif[0x0112] = 6
    with page.expect_response("**/api/v1/search"):
        drop(page, "portrait.jpg", encoded(Image.new("RGB", (400, 300), "teal"), exif=exif))
    box = page.locator("#world").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(4 / 3, rel=0.01)
    with page.expect_request("**/api/v1/search") as found:
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.9 * box["height"])
    assert json.loads(found.value.post_data)["prompt"][0]["point"] == pytest.approx([150, 360], abs=2)


def test_pictures_that_fail_say_why_and_the_page_goes_on(
    site: Site, open_page: Callable[..., Any], photos: list[Path]
) -> None:
    page = open_page(site.url)
    page.wait_for_selector("#gallery .card")
    drop(page, "nonsense.jpg", b"\xff\xd8\xff nonsense")
    page.wait_for_selector("#stage-note.bad:has-text('cannot be used')")
    drop(page, "torn.png", encoded(Image.effect_noise((300, 300), 90), "PNG")[:20_000])
    page.wait_for_selector("#stage-note.bad:has-text('cannot be')")
    page.locator("#file").set_input_files(photos[1])
    page.wait_for_selector("#results .card")
    page.wait_for_selector("#stage-note", state="hidden")


def test_a_filter_that_milvus_refuses_is_said_beside_it(site: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{site.url}/?id={PICTURE}")
    page.wait_for_selector("#results .card")
    page.locator("#settings-button").click()
    page.locator("#filter").fill("width >")
    page.locator("#filter").press("Enter")
    page.wait_for_selector("#filter-error:has-text('width >')")
    assert page.locator("#filter").get_attribute("aria-invalid") == "true"
    assert page.locator("#results .card").count(), "the hits before stay"
    page.locator("#filter").fill("width > 5000")
    page.locator("#filter").press("Enter")
    page.wait_for_selector("text=Nothing was found")
    assert page.locator("#filter-error").is_hidden()


def test_answers_to_an_older_prompt_are_dropped(site: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{site.url}/?id={PICTURE}")
    page.wait_for_selector("#results .card")
    held: list[Any] = []

    def hold_first(route: Any) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    page.route("**/api/v1/search", hold_first)
    box = page.locator("#world").bounding_box()
    page.mouse.click(box["x"] + 30, box["y"] + 30)
    page.wait_for_selector("#progress", state="visible")
    page.mouse.click(box["x"] + box["width"] - 30, box["y"] + box["height"] - 30)
    page.wait_for_selector("#progress", state="hidden")
    shown = page.locator("#results .name").all_inner_texts()
    assert len(held) == 1 and shown
    held[0].abort()
    page.wait_for_timeout(200)
    assert page.locator("#results .name").all_inner_texts() == shown and page.locator("#banner").is_hidden()


def test_an_encoder_that_comes_late_is_waited_for(
    serve: Callable[..., Site], open_page: Callable[..., Any], address: str
) -> None:
    there: list[bool] = []

    def opens() -> Encoder:
        if not there:
            raise EncoderUnavailable("no answer from the embedding server")
        return open_encoder(address)

    page = open_page(f"{serve(encoder=opens, wait=False).url}/?id={PICTURE}")
    page.wait_for_selector("#banner:has-text('no answer from the embedding server')")
    there.append(True)
    page.wait_for_selector("#results .card")
    assert page.locator("#banner").is_hidden()


def test_a_server_that_goes_away_is_found_again_without_a_reload(site: Site, open_page: Callable[..., Any]) -> None:
    page = open_page(f"{site.url}/?id={PICTURE}")
    page.wait_for_selector("#results .card")
    page.context.set_offline(True)
    box = page.locator("#world").bounding_box()
    page.mouse.click(box["x"] + 60, box["y"] + 60)
    page.wait_for_selector("#banner:has-text('does not answer')")
    with page.expect_response("**/api/v1/search") as found:
        page.context.set_offline(False)
    assert "point" in found.value.request.post_data
    page.wait_for_selector("#banner", state="hidden")


def test_a_collection_of_another_model_is_said(serve: Callable[..., Site], open_page: Callable[..., Any]) -> None:
    def opens() -> Encoder:
        raise ModelMismatch("collection 'photos' was filled by model A, the server runs B")

    page = open_page(serve(encoder=opens, wait=False).url)
    page.wait_for_selector("#banner:has-text('was filled by model A')")


def test_people_log_in_and_out(serve: Callable[..., Site], open_page: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("open sesame\n")
    site = serve(settings=WebSettings(port=0, token_file=str(tmp_path / "tokens.txt")))
    page = open_page(f"{site.url}/?id={PICTURE}&limit=5")
    page.get_by_label("Token").fill("open says me")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("[role=alert]")
    page.get_by_label("Token").fill("open sesame")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("#results .card:nth-child(5)")
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(site: Site, open_page: Callable[..., Any], scheme: str) -> None:
    if not AXE.is_file():
        pytest.skip("no axe-core here (npm install --prefix .venv/axe axe-core): accessibility is not checked")
    found: dict[str, list[str]] = {}

    def check(page: Any, name: str) -> None:
        page.evaluate(AXE.read_text())
        page.wait_for_timeout(300)  # colours of transitions
        faults = page.evaluate("axe.run()")["violations"]
        found[name] = [
            f"{fault['id']}: {node['html']}"
            for fault in faults
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]

    page = open_page(site.url, color_scheme=scheme, bypass_csp=True)
    page.wait_for_selector("#gallery .card")
    check(page, "start")
    page.goto(f"{site.url}/?id={PICTURE}&p=b40,30,80,90&view=both")
    page.wait_for_selector("#results .card svg.boxes", state="attached")
    page.locator("#settings-button").click()
    check(page, "results")
    page.locator("#copy-button").click()
    check(page, "dialog")
    page.goto(f"{site.url}/api")
    check(page, "api")
    assert not any(found.values()), found
