"""The page in a real browser: pointing with a mouse, with fingers and with keys, and what people see come of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.web.support import Site

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PICTURE = "image-0004.jpg"


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page in which one picture of the collection is open; it must not report an error of its own."""
    yield from opened(browser, f"{site.url}/?id={PICTURE}")


@pytest.fixture
def phone(browser: Any, site: Site) -> Iterator[Any]:
    yield from opened(browser, f"{site.url}/?id={PICTURE}", **PHONE)


def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#results .card")
    yield page
    context.close()
    assert not faults


def place(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a point of the picture, in shares of its sides, is on the screen."""
    box = page.locator("#world").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(page: Any, *points: tuple[float, float]) -> None:
    page.mouse.move(*place(page, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place(page, *point), steps=3)
    page.mouse.up()


def asked(page: Any, act: Any) -> dict[str, Any]:
    """The body of the search that follows an act, once its hits are shown."""
    with page.expect_response("**/api/v1/search") as found:
        act()
    found.value.finished()
    page.wait_for_selector("#progress", state="hidden")
    page.wait_for_selector("#results .card")
    return json.loads(found.value.request.post_data)


def box_of(body: dict[str, Any]) -> list[float]:
    (prompt,) = body["prompt"]
    return prompt["box"]


def test_a_picture_of_the_collection_is_opened_by_a_click(browser: Any, site: Site) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(site.url)
    page.get_by_role("button", name="Point in image-0002.jpg").click()
    page.wait_for_selector("#results .card")
    assert "id=image-0002.jpg" in page.url and page.locator("#count").inner_text().startswith("24 hits")
    page.go_back()
    page.wait_for_selector("#gallery .card >> visible=true")
    context.close()


def test_a_box_is_drawn_moved_resized_and_undone(page: Any) -> None:
    body = asked(page, lambda: drag(page, (0.25, 0.25), (0.5, 0.75)))
    assert body["id"] == PICTURE and box_of(body) == pytest.approx([40, 30, 80, 90], abs=1)
    assert page.locator("#heads .head.kept").count() == 1 and page.locator("#heads .head").count() == 4
    assert page.locator("#patches").is_visible()
    page.wait_for_selector("#results .card svg rect", state="attached")
    moved = asked(page, lambda: drag(page, (0.4, 0.5), (0.6, 0.5)))
    assert box_of(moved) == pytest.approx([72, 30, 112, 90], abs=1)
    resized = asked(page, lambda: drag(page, (0.7, 0.75), (0.9, 0.9)))
    assert box_of(resized) == pytest.approx([72, 30, 144, 108], abs=1)
    back = asked(page, lambda: page.locator("#undo").click())
    assert box_of(back) == box_of(moved)
    assert "prompt" not in asked(page, lambda: page.keyboard.press("Escape"))


def test_clicks_add_and_with_a_modifier_take_away(page: Any) -> None:
    asked(page, lambda: page.mouse.click(*place(page, 0.5, 0.5)))

    def away() -> None:
        page.keyboard.down("Alt")
        page.mouse.click(*place(page, 0.8, 0.25))
        page.keyboard.up("Alt")

    body = asked(page, away)
    assert [sorted(prompt) for prompt in body["prompt"]] == [["point"], ["label", "point"]]
    assert body["prompt"][1]["point"] == pytest.approx([128, 30], abs=1) and body["prompt"][1]["label"] == 0
    page.locator("#remove").check()
    assert len(asked(page, lambda: page.mouse.click(*place(page, 0.2, 0.2)))["prompt"]) == 3


def test_a_lasso_is_a_polygon_of_few_corners(page: Any) -> None:
    page.locator("label:has(input[value=lasso])").click()
    body = asked(page, lambda: drag(page, (0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8), (0.2, 0.25)))
    corners = body["prompt"][0]["polygon"]
    assert 4 <= len(corners) <= 8
    xs, ys = zip(*corners, strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((32, 128, 24, 96), abs=1)


def test_fingers_point_and_pinch(phone: Any) -> None:
    body = asked(phone, lambda: phone.touchscreen.tap(*place(phone, 0.5, 0.5)))
    assert body["prompt"][0]["point"] == pytest.approx([80, 60], abs=1)
    touch = phone.context.new_cdp_session(phone)

    def send(kind: str, *points: tuple[float, float]) -> None:
        shown = [dict(zip("xy", place(phone, *point), strict=True), id=number) for number, point in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": shown})

    def draw() -> None:
        send("touchStart", (0.1, 0.1))
        for share in (0.2, 0.3, 0.4):
            send("touchMove", (share, share))
        send("touchEnd")

    body = asked(phone, draw)
    assert body["prompt"][1]["box"] == pytest.approx([16, 12, 64, 48], abs=1)
    before = phone.locator("#world").bounding_box()["width"]
    ends = [place(phone, 0.4, 0.5), place(phone, 0.6, 0.5)], [place(phone, 0.2, 0.5), place(phone, 0.8, 0.5)]
    for kind, points in (("touchStart", ends[0]), ("touchMove", ends[1]), ("touchEnd", [])):
        shown = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": shown})
    assert phone.locator("#world").bounding_box()["width"] == pytest.approx(3 * before, rel=0.1)
    width = phone.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["viewport"]["width"], "the page is wider than a phone"


def test_keys_alone_point_and_search(page: Any) -> None:
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#keys").is_visible() and page.locator("#drawing .cross").count() == 1
    assert asked(page, lambda: page.keyboard.press("Enter"))["prompt"][0]["point"][1] == pytest.approx(60, abs=1)
    assert "prompt" not in asked(page, lambda: page.keyboard.press("Delete"))
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    for key in ["ArrowRight"] * 4 + ["ArrowDown"] * 3:
        page.keyboard.press(key)
    body = asked(page, lambda: page.keyboard.press("Enter"))
    x0, y0, x1, y1 = box_of(body)
    assert x1 - x0 == pytest.approx(4 / 3 * (y1 - y0), rel=0.05)
    asked(page, lambda: page.keyboard.press("Control+z"))
    page.keyboard.press("l")
    for key in ("Enter", "Shift+ArrowRight", "Enter", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert len(asked(page, lambda: page.keyboard.press("Enter"))["prompt"][0]["polygon"]) == 3
    page.keyboard.press("+")
    assert page.locator("#world").bounding_box()["width"] > page.locator("#stage").bounding_box()["width"]


def test_a_hit_becomes_the_query_and_its_box_the_prompt(page: Any) -> None:
    asked(page, lambda: drag(page, (0.25, 0.25), (0.5, 0.75)))
    page.wait_for_selector("#results .card svg.boxes", state="attached")
    name = page.locator("#results .card .name").first.inner_text()
    body = asked(page, lambda: page.locator("#results .card .look").first.click())
    assert body["id"] == name and len(box_of(body)) == 4 and f"id={name}" in page.url


def test_an_own_picture_is_sent_once(page: Any, photos: list[Path]) -> None:
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/pictures") else None)
    body = asked(page, lambda: page.locator("#file").set_input_files(photos[9]))
    assert re.fullmatch("[0-9a-f]{64}", body["picture"])
    again = asked(page, lambda: drag(page, (0.25, 0.25), (0.5, 0.75)))
    assert again["picture"] == body["picture"] and len(sent) == 1
    assert photos[9].name not in page.locator("#results .card .name").all_inner_texts()


def test_a_link_shows_the_same_again(page: Any) -> None:
    asked(page, lambda: drag(page, (0.25, 0.25), (0.5, 0.75)))
    page.locator("#settings-button").click()
    page.locator("#limit").fill("7")
    body = asked(page, lambda: page.locator("#limit").press("Enter"))
    page.locator("label:has(input[value=both])").click()
    page.wait_for_selector("#results.both section:nth-child(2) .card")
    with page.expect_request(
        lambda request: "search" in request.url and "prompt" in (request.post_data or "")
    ) as found:
        page.reload()
    assert json.loads(found.value.post_data) == body
    page.wait_for_selector("#results.both section:nth-child(2) .card")


def test_what_is_copied_and_saved_is_the_search_on_the_screen(page: Any, tmp_path: Path) -> None:
    asked(page, lambda: drag(page, (0.25, 0.25), (0.5, 0.75)))
    page.wait_for_selector("#results .card svg.boxes", state="attached")
    page.locator("#copy-button").click()
    text = page.locator("#dialog pre").inner_text()
    compile(text, "copied", "exec")
    assert f'StoredImage("{PICTURE}")' in text and "Box(4" in text
    page.locator("#dialog label:has-text('curl')").click()
    assert "/api/v1/search" in page.locator("#dialog pre").inner_text()
    page.locator("#dialog label:has-text('Command')").click()
    assert f"--stored {PICTURE}" in page.locator("#dialog pre").inner_text()
    page.keyboard.press("Escape")
    page.locator("#save-button").click()
    saved = {}
    for name in ("JSON", "CSV", "COCO boxes"):
        with page.expect_download() as found:
            page.locator(f"#dialog button:has-text('{name}')").click()
        found.value.save_as(tmp_path / name)
        saved[name] = (tmp_path / name).read_text()
    hits = json.loads(saved["JSON"])["hits"]
    assert len(hits) == 24 and saved["CSV"].count("\n") == 24 and saved["CSV"].startswith("rank,id,score")
    coco = json.loads(saved["COCO boxes"])
    assert coco["images"][0]["file_name"] == hits[0]["id"] and coco["annotations"][0]["image_id"] == 1
