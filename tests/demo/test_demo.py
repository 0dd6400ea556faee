"""The demo: its scenes and prompts, its figures against a plain count, and its page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phs_milvus import Encoder, Focus, FocusedCollection, FocusedSearch, ingest_folder
from phs_milvus.contract.images import load_image
from phs_milvus.demo.measure import Measured, chance, measure
from phs_milvus.demo.page import write_page
from phs_milvus.demo.run import BUNDLED_FOCUS, BUNDLED_MODEL, BUNDLED_SCENES, run_demo
from phs_milvus.demo.scenes import Scene, load_scenes, queries
from phs_milvus.milvus.connection import close, connect
from phs_milvus.pointing.prompts import Box, to_array


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return load_scenes(BUNDLED_SCENES)


def test_scenes_are_what_their_annotations_say(scenes: list[Scene]) -> None:
    assert len(scenes) >= 300
    assert {path.name for path in BUNDLED_SCENES.glob("*.webp")} == {scene.name for scene in scenes}
    for scene in scenes[::29]:
        image = load_image(BUNDLED_SCENES / scene.name)
        assert (image.width, image.height) == (scene.width, scene.height)
        for item in scene.objects:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= scene.width and 0 <= y0 < y1 <= scene.height
            assert sum(item.runs) == scene.width * scene.height


def test_prompts_lie_on_their_target(scenes: list[Scene]) -> None:
    for query in queries(scenes, ("box", "point", "mask"), 30):
        size = (query.scene.width, query.scene.height)
        selected = to_array(query.prompt, *size)
        inside_box = to_array(Box(*query.target.box), *size)
        if query.kind == "point":
            x, y = int(query.prompt.x), int(query.prompt.y)
            assert inside_box[y, x]
        else:
            assert selected.any() and not (selected & ~inside_box).any()


def test_queries_are_spread_and_have_something_to_confuse(scenes: list[Scene]) -> None:
    chosen = queries(scenes, ("box",), 60)
    assert len(chosen) == 60
    assert len({query.scene.name for query in chosen}) > 50
    assert len({query.target.label for query in chosen}) > 20
    assert all(len(query.scene.labels) >= 2 for query in chosen)


def test_figures_are_a_plain_count(scenes: list[Scene], encoder: Encoder, tmp_path: Path) -> None:
    some = scenes[:40]
    for scene in some:
        (tmp_path / scene.name).symlink_to(BUNDLED_SCENES / scene.name)
    client = connect(str(tmp_path / "demo.db"))
    try:
        collection = FocusedCollection.create(client, "demo", encoder.info)
        ingest_folder(tmp_path, collection, encoder, progress=False)
        search = FocusedSearch(collection, encoder)
        asked = queries(some, ("box",), 10)
        whole, query_only, two_stage, exhaustive, default = measure(
            search, Focus(), some, asked, lambda scene: str(tmp_path / scene.name)
        )
        counts = {"whole": [], "published": [], "default": []}
        for query in asked:
            path = tmp_path / query.scene.name
            for name, prompt, options in (
                ("whole", None, {}),
                ("published", query.prompt, {"focus": Focus.paper(), "score": "query_db"}),
                ("default", query.prompt, {}),
            ):
                hits = search.search(path, prompt, limit=40, candidates=40, **options).hits
                names = [hit.id for hit in hits if hit.id != query.scene.name][:10]
                right = [query.target.label in scene.labels for name in names for scene in some if scene.name == name]
                counts[name].append(sum(right) / 10)
    finally:
        close(client)
    assert whole.precision == pytest.approx(np.mean(counts["whole"]))
    assert exhaustive.precision == two_stage.precision == pytest.approx(np.mean(counts["published"]))
    assert default.precision == pytest.approx(np.mean(counts["default"]))
    differences = np.array(counts["published"]) - counts["whole"]
    assert exhaustive.gain == pytest.approx(differences.mean())
    assert exhaustive.gain_error == pytest.approx(differences.std(ddof=1) / np.sqrt(10))
    assert 0 < chance(some, asked) < 0.5
    assert query_only.method == "PHS, Query-Only"


def test_the_page_shows_every_query(encoder: Encoder, tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(tmp_path / "photos", 9)
    client = connect(str(tmp_path / "demo.db"))
    try:
        page = run_demo(encoder, client, tmp_path / "out", tmp_path / "photos").read_text()
    finally:
        close(client)
    assert page.count("<section>") == 7
    assert "middle of each picture" in page and "green frame" not in page.lower()
    sources = re.findall(r"<img src='([^']*)'", page)
    # Per query: itself, four heads, and seven hits of each of three searches.
    assert len(sources) == 6 * (1 + 4 + 3 * 7)
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "http" not in page.replace("https://arxiv.org", "")
    assert len(list((tmp_path / "out").glob("query-*.png"))) == 6


def test_the_bundled_model_is_served_like_any_checkpoint() -> None:
    """Loading runs the self-check; the file is what git has, or `make demo` fails in a fresh clone."""
    from phs_server.model import checkpoint

    loaded = checkpoint.load(str(BUNDLED_MODEL))
    assert (loaded.backbone.heads, loaded.preprocessing.image_size) == (12, 224)
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.iterdir()) < 12_000_000


def test_pointing_helps_with_the_bundled_model(scenes: list[Scene], tmp_path: Path) -> None:
    """On a quarter of the scenes: in the demo itself, on all of them, the gain is over .3."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    some = scenes[:150]
    for scene in some:
        (tmp_path / scene.name).symlink_to(BUNDLED_SCENES / scene.name)
    client = connect(str(tmp_path / "demo.db"))
    try:
        with ServerThread(Settings(model=str(BUNDLED_MODEL), port=0)) as server, Encoder(server.address) as encoder:
            collection = FocusedCollection.create(client, "demo", encoder.info)
            ingest_folder(tmp_path, collection, encoder, progress=False)
            search, asked = FocusedSearch(collection, encoder), queries(some, ("box",), 60)
            figures = measure(search, BUNDLED_FOCUS, some, asked, lambda scene: str(tmp_path / scene.name))
    finally:
        close(client)
    for focused in figures[1:]:
        assert focused.gain > 0.1 and focused.gain > 3 * focused.gain_error, focused


def test_the_page_speaks_of_what_is_shown_whatever_the_model(encoder: Encoder, tmp_path: Path) -> None:
    """Ground truth comes with the pictures, the warning with the model: either may be there without the other."""
    measured = [Measured("whole image", 0.2, 0.0, 0.0)]
    for figures, bundled in ((measured, False), ([], True)):
        file = write_page(tmp_path / "p.html", encoder.info, Focus(heads_on=2), 9, [], figures, 9, 0.1, bundled=bundled)
        page = file.read_text()
        assert ("A green frame" in page) == bool(figures)
        assert ("middle of each picture" in page) != bool(figures)
        assert ("not for photos" in page) == bundled
