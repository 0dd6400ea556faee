"""Photos in a real collection, digests, exact states and all, that no test changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phs_milvus import Encoder, FocusedCollection, FocusedSearch, connect, ingest_folder
from phs_milvus.milvus.connection import close


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., list[Path]]) -> list[Path]:
    """40 pictures; the first is there a second time under another name, at the end of the list."""
    folder = tmp_path_factory.mktemp("photos")
    paths = make_images(folder, 40, seed=5)
    shutil.copy(paths[0], folder / "copy.jpg")
    return [*paths, folder / "copy.jpg"]


@pytest.fixture(scope="module")
def photo_search(milvus_uri: str, photos: list[Path], encoder: Encoder) -> Iterator[FocusedSearch]:
    client = connect(milvus_uri)
    collection = FocusedCollection.create(client, "photos", encoder.info, overwrite=True, state_format="float16")
    ingest_folder(photos[0].parent, collection, encoder, progress=False)
    yield FocusedSearch(collection, encoder)
    close(client)
