"""Pictures of rows and of callers: only of ids that are there, never from outside their folder, always drawn anew."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from phs_milvus.client.pictures import Opened
from phs_milvus.contract.errors import InvalidInput, PictureNotHeld
from phs_milvus.web.held import HeldPictures
from phs_milvus.web.stored import StoredPictures
from tests.web.support import Site


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def a_photo(form: str, size: tuple[int, int] = (300, 200), **options: object) -> bytes:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_a_rows_picture_is_drawn_small_and_cached(site: Site, photos: list[Path]) -> None:
    answer = site.get(f"/image/{photos[2].name}?size=256")
    picture = opened(answer.body)
    assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg" and picture.size == (160, 120)
    assert opened(answer.body).getpixel((30, 30)) == pytest.approx(
        opened(photos[2].read_bytes()).getpixel((30, 30)), abs=12
    )
    again = site.get(f"/image/{photos[2].name}?size=256", if_none_match=answer.headers["etag"])
    assert again.status == 304 and not again.body and again.headers["etag"] == answer.headers["etag"]
    other = site.get(f"/image/{photos[2].name}?size=512").headers["etag"]
    assert other != answer.headers["etag"]


def test_a_picture_that_changes_has_another_etag(
    serve: Callable[..., Site], photos: list[Path], tmp_path: Path
) -> None:
    for path in photos[:2]:
        shutil.copy(path, tmp_path)
    site = serve(images=str(tmp_path))
    before = site.get(f"/image/{photos[0].name}").headers["etag"]
    shutil.copy(photos[1], tmp_path / photos[0].name)
    after = site.get(f"/image/{photos[0].name}", if_none_match=before)
    assert after.status == 200 and after.headers["etag"] != before


@pytest.mark.parametrize(
    "path", ["..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "nowhere.jpg", "a%00b", "..", "image-0000.jpg%2f.."]
)
def test_only_ids_of_the_collection_have_pictures(site: Site, path: str) -> None:
    answer = site.get(f"/image/{path}")
    assert answer.status == 404 and answer.headers["content-type"] == "application/problem+json"


def test_links_lead_nowhere_else(serve: Callable[..., Site], photos: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / photos[0].name).symlink_to(photos[0])
    shutil.copy(photos[1], root)
    (root / photos[2].name).symlink_to(root / photos[1].name)
    site = serve(images=str(root))
    assert [site.get(f"/image/{path.name}").status for path in photos[:4]] == [404, 200, 200, 404]
    assert "below the folder" in site.get(f"/image/{photos[0].name}").json["detail"]


def test_a_folder_or_url_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    for images in (str(tmp_path / "no"), "ftp://host/{id}", "https://host/"):
        with pytest.raises(InvalidInput) as caught:
            StoredPictures(images)
        assert caught.value.field == "images"


@pytest.mark.parametrize("size", ["0", "100", "1e3", "-256", "x" * 300])
def test_sizes_are_a_closed_list(site: Site, photos: list[Path], size: str) -> None:
    answer = site.get(f"/image/{photos[0].name}?size={size}")
    assert answer.status == 400 and answer.json["field"] == "size"


@pytest.mark.parametrize("form", ["TIFF", "WEBP", "PNG", "JPEG2000"])
def test_what_a_browser_cannot_show_is_drawn(site: Site, form: str) -> None:
    digest = site.post("/api/v1/pictures", a_photo(form)).json["picture"]
    answer = site.get(f"/api/v1/pictures/{digest}?size=256")
    picture = opened(answer.body)
    assert picture.size == (256, 171) and picture.getpixel((20, 90))[0] > 200 and picture.getpixel((230, 90))[2] > 200


def test_a_portrait_is_upright(site: Site) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise to be upright: left becomes top
    held = site.post("/api/v1/pictures", a_photo("JPEG", exif=exif)).json
    assert (held["width"], held["height"]) == (200, 300)
    picture = opened(site.get(f"/api/v1/pictures/{held['picture']}?size=256").body)
    assert picture.size == (171, 256) and picture.getpixel((85, 20))[0] > 200 and picture.getpixel((85, 230))[2] > 200
    below = {"picture": held["picture"], "prompt": [{"box": [0, 150, 200, 300]}]}
    mask = site.post("/api/v1/explain", below).json["mask"]
    assert mask == [[0.0] * 4] * 2 + [[1.0] * 4] * 2
    assert site.post("/api/v1/explain", {**below, "prompt": [{"box": [201, 0, 300, 200]}]}).status == 400


def test_what_fails_costs_its_own_request_an_error(site: Site, photos: list[Path]) -> None:
    assert site.post("/api/v1/pictures", b"GIF89a nothing").json["field"] == "image"
    torn = a_photo("PNG", (400, 400))[:300]
    digest = site.post("/api/v1/pictures", torn).json["picture"]
    for answer in (
        site.get(f"/api/v1/pictures/{digest}"),
        site.post("/api/v1/search", {"picture": digest}),
        site.post("/api/v1/explain", {"picture": digest}),
    ):
        assert answer.status == 400 and answer.json["field"] == "image", answer.json
    assert site.get(f"/image/{photos[0].name}").status == 200


def test_pictures_used_longest_ago_make_room() -> None:
    held = HeldPictures(100)
    for name in "abc":
        held.put(name, Opened(name.encode() * 40, 1, 1))
        held.get("a") if name == "b" else None
    assert [_is_held(held, name) for name in "abc"] == [True, False, True]
    held.put("large", Opened(b"x" * 1000, 1, 1))
    assert [_is_held(held, name) for name in ("a", "c", "large")] == [False, False, True]


def _is_held(held: HeldPictures, name: str) -> bool:
    try:
        return bool(held.get(name))
    except PictureNotHeld:
        return False
