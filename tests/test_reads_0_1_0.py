"""What version 0.1.0 wrote is read by today's code: a collection, an evaluation cache, a settings file.

tests/fixtures/v0_1_0 was written by it with the bundled model in float32, on the scenes that labels.csv names.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from phs_milvus.cli import main
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.types import Focus
from phs_milvus.milvus.collection import FocusedCollection, connect
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.settings import read_settings
from tests.servers import REPO

FIXTURES = Path(__file__).parent / "fixtures" / "v0_1_0"
SCENES = REPO / "assets" / "demo_scenes"
QUERY = Box(43, 193, 176, 277)


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    """The bundled model, as it was served then."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    settings = Settings(model=str(REPO / "assets" / "demo_model"), port=0, precision="float32", drain_seconds=1)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What 0.1.0 wrote, to be changed, beside the pictures."""
    copy = Path(shutil.copytree(FIXTURES, tmp_path / "v0_1_0"))
    for name in pictures():
        shutil.copy(SCENES / name, copy / name)
    return copy


def pictures() -> list[str]:
    lines = (FIXTURES / "labels.csv").read_text().splitlines()[1:]
    return sorted({line.partition(",")[0] for line in lines})


def test_the_model_is_the_one_of_then(encoder: Encoder) -> None:
    assert encoder.info.fingerprint == json.loads((FIXTURES / "focus.json").read_text())["fingerprint"]


def test_a_collection_is_opened_searched_and_written(encoder: Encoder, folder: Path) -> None:
    expected = json.loads((folder / "search.json").read_text())
    with FocusedCollection.open(connect(str(folder / "collection.db")), "images") as collection:
        assert collection.model.model_id == "demo-model" and collection.count() == len(expected) == 8
        found = FocusedSearch(collection, encoder).search(
            folder / "scene_0000.webp", QUERY, focus=focus_of({"heads": 3}, folder), score="query_db"
        )
        assert [hit.id for hit in found] == [row["id"] for row in expected]
        for hit, row in zip(found, expected, strict=True):
            assert hit.score == pytest.approx(row["score"], abs=2e-4)
            assert hit.ann_score == pytest.approx(row["ann_score"], abs=2e-4)
            assert (hit.ann_rank, hit.query_db_rank) == (row["ann_rank"], row["rerank_rank"])
        row = collection.get(["scene_0003.webp"])[0]
        assert (row["width"], row["height"]) == (352, 352) and row["path"].endswith("scene_0003.webp")
        collection.delete(["scene_0003.webp"])
        assert collection.count() == 7


def test_settings_are_read(folder: Path, tmp_path: Path) -> None:
    old = json.loads((folder / "focus.json").read_text())
    settings = read_settings(folder / "focus.json")
    assert settings.fingerprint == old["fingerprint"] and settings.candidates is None
    assert settings.focus == focus_of({"heads": 6, "roi": 1.0, "zoom": 2.0}, tmp_path)
    assert settings.focus != focus_of({"heads": 5, "roi": 1.0, "zoom": 2.0}, tmp_path)
    assert settings.focus != focus_of({"heads": 6, "roi": 0.5, "zoom": 2.0}, tmp_path)
    assert settings.focus.single_zoom == 2.0
    assert settings.measured["mAP"] == pytest.approx(0.1677, abs=1e-4)


def focus_of(old: dict[str, float], folder: Path) -> Focus:
    """A focus under the names of 0.1.0."""
    (folder / "written.json").write_text(json.dumps({"focus": old}))
    return read_settings(folder / "written.json").focus


@pytest.mark.parametrize("command", ["eval --preset heads", "tune"])
def test_nothing_that_the_cache_holds_is_encoded_anew(
    encoder: Encoder, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = next((folder / "eval-cache").glob("*.sqlite"))

    def rows() -> set[bytes]:
        with sqlite3.connect(cache) as database:
            return {row[0] for row in database.execute("SELECT key FROM seen")}

    before = rows()
    monkeypatch.chdir(folder)
    # Those of 0.1.0; today crops at zoom 1 are tried as well.
    monkeypatch.setattr("phs_milvus.evaluation.tune._ZOOMS", (0.0, 1.25, 2.0, (0.0, 2.0), (0.0, 1.25, 2.0)))
    for name in ("PHS_MODEL", "PHS_ENCODER_TLS", "PHS_ENCODER_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as done:
        main([*command.split(), "labels.csv", "--cache", "eval-cache", "--encoder", encoder.address])
    assert done.value.code == 0
    assert rows() == before and len(before) >= 8
