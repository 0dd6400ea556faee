"""Photos in a real collection, and the same photos as states and paths in the metadata of others' documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phs_milvus import Encoder, FocusedCollection, FocusedSearch, Outputs, connect, ingest_folder, state
from phs_milvus.milvus.connection import close

# No framework tells anyone that a test ran.
os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false", "DO_NOT_TRACK": "1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., list[Path]]) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("photos"), 24, seed=9)


@pytest.fixture(scope="module")
def collection(milvus_uri: str, photos: list[Path], encoder: Encoder) -> Iterator[FocusedCollection]:
    client = connect(milvus_uri)
    collection = FocusedCollection.create(client, "images", encoder.info, state_format="float16", overwrite=True)
    ingest_folder(photos[0].parent, collection, encoder, progress=False)
    yield collection
    close(client)


@pytest.fixture(scope="module")
def search(collection: FocusedCollection, encoder: Encoder) -> FocusedSearch:
    return FocusedSearch(collection, encoder)


@pytest.fixture(scope="module")
def states(photos: list[Path], encoder: Encoder) -> dict[str, str]:
    """The packed state of each photo by its path: what somebody stores beside documents of their own."""
    encodings = encoder.encode_many(photos, outputs=Outputs(state=True))
    return {str(path): state.pack(encoding.state) for path, encoding in zip(photos, encodings, strict=True)}
