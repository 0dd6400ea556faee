"""A small labelled dataset and a served ViT, shared by the tests of methods, cache and commands."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.evaluation import Bench, QuerySet, Store, load, object_queries
from tests.checkpoints import save_checkpoint

COUNT = 50
_COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60), "blue": (50, 60, 210)}


@pytest.fixture(scope="session")
def vit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT with 2 layers, 4 heads, D=48, 64 px, patch 16."""
    return save_checkpoint("vit", tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def vit_encoder(vit_model: Path) -> Iterator[Encoder]:
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    settings = Settings(model=str(vit_model), port=0, precision="float32", drain_seconds=2)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield encoder


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 50 noisy images of odd sizes, each with two coloured boxes of different classes."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "x0", "y0", "x1", "y1", "label"))
        for index in range(COUNT):
            width, height = (int(side) for side in 2 * rng.integers(30, 60, 2) + 1)
            pixels = rng.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
            image = np.asarray(Image.fromarray(pixels).resize((width, height))).copy()
            for label in rng.permutation(list(_COLOURS))[:2]:
                x0, y0 = int(rng.integers(0, width - 14)), int(rng.integers(0, height - 14))
                x1, y1 = int(rng.integers(x0 + 8, width + 1)), int(rng.integers(y0 + 8, height + 1))
                image[y0:y1, x0:x1] = image[y0:y1, x0:x1] // 4 + np.array(_COLOURS[label], np.uint8) // 2
                table.writerow((f"{index:02d}.png", x0, y0, x1, y1, label))
            Image.fromarray(image).save(folder / f"{index:02d}.png")
    return folder / "labels.csv"


@pytest.fixture(scope="session")
def bench(vit_encoder: Encoder, labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Store(tmp_path_factory.mktemp("cache"), vit_encoder.info) as store:
        bench = Bench(vit_encoder, load(labels), store)
        yield bench
        bench.close()


@pytest.fixture(scope="session")
def queries(bench: Bench) -> QuerySet:
    """Every second object of the dataset: one of each image."""
    return bench.queries(object_queries(bench.dataset)[::2], "box")
