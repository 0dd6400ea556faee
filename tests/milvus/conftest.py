"""A real Milvus: Lite by default, the server at PHS_TEST_MILVUS_URI if that is set (tests/milvus_standalone.sh)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.milvus.support import INFO, URI, E, make_rows


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return URI or str(tmp_path_factory.mktemp("milvus") / "new" / "test.db")


@pytest.fixture(scope="module")
def client(uri: str) -> Iterator[MilvusClient]:
    client = connect(uri)
    yield client
    close(client)


@pytest.fixture
def name(client: MilvusClient) -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield name
    client.drop_collection(name)


@pytest.fixture
def collection(client: MilvusClient, name: str) -> FocusedCollection:
    """Of float16 states, which come back exactly; test_state_formats.py is about the others."""
    return FocusedCollection.create(client, name, INFO, state_format="float16")


@pytest.fixture(scope="module")
def filled(client: MilvusClient) -> Iterator[FocusedCollection]:
    """A thousand rows that no test changes; album is 0 to 9."""
    collection = FocusedCollection.create(
        client, f"t_{uuid.uuid4().hex[:12]}", INFO, index_type="FLAT", state_format="float16"
    )
    rows = make_rows([f"r{index:04d}" for index in range(1000)])
    for index, row in enumerate(rows):
        row.metadata = {"album": index % 10, "name": f"n{index}"}
    collection.insert(rows)
    collection.flush()
    yield collection
    client.drop_collection(collection.name)


@pytest.fixture
def foreign(client: MilvusClient, name: str) -> Callable[..., str]:
    """Makes a collection the way somebody else would."""

    def make(metric: str = "COSINE", key: DataType = DataType.INT64, dim: int = E, length: int = 64, **options) -> str:
        schema = client.create_schema(**{"auto_id": False, "enable_dynamic_field": False, **options})
        limit = {"max_length": 20} if key == DataType.VARCHAR else {}
        schema.add_field("pk", key, is_primary=True, **limit)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field("packed", DataType.VARCHAR, max_length=length)
        schema.add_field("title", DataType.VARCHAR, max_length=100)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type=metric)
        client.create_collection(name, schema=schema, index_params=index)
        return name

    return make
