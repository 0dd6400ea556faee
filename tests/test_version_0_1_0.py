"""What version 0.1.0 wrote still opens: a collection, an evaluation cache and a settings file, made by that version.

They are in tests/fixtures/v0_1_0: of the bundled model and eight of its scenes, with what 0.1.0 found for a box.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from phs_milvus import Box, Encoder, Focus, FocusedCollection, FocusedSearch
from phs_milvus.demo.run import BUNDLED_MODEL, BUNDLED_SCENES
from phs_milvus.evaluation import Bench, Store, load, object_queries
from phs_milvus.milvus.connection import close, connect
from phs_milvus.search.settings import read_settings
from tests.servers import REPO

WRITTEN = REPO / "tests/fixtures/v0_1_0"


@pytest.fixture(scope="module")
def demo_encoder() -> Iterator[Encoder]:
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    settings = Settings(model=str(BUNDLED_MODEL), port=0, precision="float32", drain_seconds=2)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield encoder


def test_a_collection_is_searched_with_the_same_result(demo_encoder: Encoder, tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "collection.db", tmp_path / "collection.db")
    expected = json.loads((WRITTEN / "search.json").read_text())
    client = connect(str(tmp_path / "collection.db"))
    try:
        search = FocusedSearch(FocusedCollection.open(client, "images"), demo_encoder)
        result = search.search(BUNDLED_SCENES / "scene_0000.webp", Box(43, 193, 176, 277), focus=Focus(heads_on=3))
    finally:
        close(client)
    assert [hit.id for hit in result] == [hit["id"] for hit in expected]
    for name in ("ann_score", "rerank_score"):
        # 0.1.0 computed in bfloat16 or float32, as its machine did.
        assert [getattr(hit, name) for hit in result] == pytest.approx([hit[name] for hit in expected], abs=0.02)


def test_settings_mean_the_same() -> None:
    """`heads`, `roi` and `zoom` of 0.1.0."""
    settings = read_settings(WRITTEN / "focus.json")
    assert settings.focus == Focus(heads_on=6, attention_shift=1.0, zoom=2.0)
    assert (settings.candidates, settings.measured["mAP"]) == (None, pytest.approx(0.168, abs=0.001))


def test_an_evaluation_cache_answers_without_the_server(demo_encoder: Encoder, tmp_path: Path) -> None:
    shutil.copytree(WRITTEN / "eval-cache", tmp_path / "cache")
    shutil.copy(WRITTEN / "labels.csv", tmp_path / "labels.csv")
    for scene in {line.partition(",")[0] for line in (tmp_path / "labels.csv").read_text().splitlines()[1:]}:
        (tmp_path / scene).symlink_to(BUNDLED_SCENES / scene)
    (file,) = (tmp_path / "cache").glob("*.sqlite")
    with sqlite3.connect(file) as database:
        (before,) = database.execute("SELECT count(*) FROM seen").fetchone()
    with Store(tmp_path / "cache", demo_encoder.info) as store:
        bench = Bench(demo_encoder, load(tmp_path / "labels.csv"), store)
        queries = bench.queries(object_queries(bench.dataset), "box")
        assert bench.states.shape[0] == len(bench.dataset.images) == 8
        states, _ = bench.look(queries, focus=Focus(attention_shift=1.0, zoom=2.0))
        assert len(states) == len(queries)
        bench.close()
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT count(*) FROM seen").fetchone() == (before,)
