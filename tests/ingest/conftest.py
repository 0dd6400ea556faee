"""Collections in Milvus Lite, or at the server of PHS_TEST_MILVUS_URI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pymilvus import MilvusClient

from phs_milvus.client.encoder import Encoder
from phs_milvus.milvus.collection import FocusedCollection, close, connect


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[MilvusClient]:
    client = connect(milvus_uri)
    yield client
    close(client)


@pytest.fixture
def collection(client: MilvusClient, encoder: Encoder) -> Iterator[FocusedCollection]:
    yield FocusedCollection.create(client, "images", encoder.info, overwrite=True)
    client.drop_collection("images")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"
