"""Collections in Milvus Lite, or at the server of PHS_TEST_MILVUS_URI."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from pymilvus import MilvusClient

from phs_milvus.milvus.collection import close, connect


@pytest.fixture(scope="module")
def client(milvus_uri: str) -> Iterator[MilvusClient]:
    client = connect(milvus_uri)
    yield client
    close(client)


@pytest.fixture
def name(client: MilvusClient) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield name
    for one in client.list_collections():
        if one.startswith(name):
            client.drop_collection(one)
