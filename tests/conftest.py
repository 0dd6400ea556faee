"""Fixtures of all tests: small checkpoints made here, real servers on loopback ports, and real data if at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from tests.checkpoints import save_checkpoint

MILVUS_URI = os.environ.get("PHS_TEST_MILVUS_URI")
SHARED = Path(os.environ.get("PHS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers of pytest-xdist take whole files: what a file's tests share is made once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What servers keep between starts is of this run alone, in processes of their own too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Milvus Lite of the test file's own, or the server at PHS_TEST_MILVUS_URI."""
    return MILVUS_URI or str(tmp_path_factory.mktemp("milvus") / "test.db")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 checkpoint directory: 2 layers, 4 heads, D=48, 56 px, patch 14, random weights."""
    return save_checkpoint("dinov2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def address(tiny_model: Path) -> Iterator[str]:
    """A real server of `tiny_model` in this process, float32."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings

    with ServerThread(Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=2)) as server:
        yield server.address


@pytest.fixture(scope="session")
def encoder(address: str) -> Iterator[Encoder]:
    with Encoder(address) as encoder:
        yield encoder


@pytest.fixture(scope="session")
def make_images() -> Callable[..., list[Path]]:
    """make_images(directory, n, seed=0): n small JPEGs of coloured blocks, all different."""

    def make(directory: Path, n: int, seed: int = 0) -> list[Path]:
        rng = np.random.default_rng(seed)
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for index in range(n):
            blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            path = directory / f"image-{index:04d}.jpg"
            Image.fromarray(blocks).resize((160, 120), Image.Resampling.NEAREST).save(path, quality=92)
            paths.append(path)
        return paths

    return make


@pytest.fixture(scope="session")
def deit() -> Path:
    """The real DeiT-Tiny checkpoint, where it is at hand."""
    path = SHARED / "models" / "deit-tiny-patch16-224"
    if not (path / "model.safetensors").exists():
        pytest.skip(f"no DeiT-Tiny checkpoint at {path}; set PHS_SHARED to the folder that holds models/ and data/")
    return path


@pytest.fixture(scope="session")
def voc() -> Path:
    """PASCAL VOC 2007 images and annotations, where they are at hand."""
    path = SHARED / "data" / "VOC2007"
    if not (path / "JPEGImages").is_dir():
        pytest.skip(f"no VOC images at {path}; set PHS_SHARED to the folder that holds models/ and data/")
    return path
