"""Making and overwriting collections: nothing is dropped but what was named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pymilvus import MilvusClient

from phs_milvus.contract.errors import CollectionError, InvalidInput
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.milvus.support import INFO, OTHER, E, make_rows


@pytest.fixture
def filled_name(client: MilvusClient, name: str) -> str:
    """A collection of three rows."""
    FocusedCollection.create(client, name, INFO).insert(make_rows(["a", "b", "c"]))
    return name


def counted(client: MilvusClient, name: str) -> int:
    return FocusedCollection.open(client, name).count()


def test_open_and_create(client: MilvusClient, filled_name: str) -> None:
    opened = FocusedCollection.open(client, filled_name)
    assert opened.model.fingerprint == INFO.fingerprint and opened.describe()["rows"] == 3
    with pytest.raises(CollectionError, match="exists; open it"):
        FocusedCollection.create(client, filled_name, INFO)
    assert opened.count() == 3
    assert FocusedCollection.create(client, filled_name, OTHER, overwrite=True).count() == 0
    assert FocusedCollection.open(client, filled_name).model.model_id == "other"


def test_overwritten_by_a_model_of_another_size(client: MilvusClient, filled_name: str) -> None:
    wide = replace(OTHER, embedding_size=2 * E)
    collection = FocusedCollection.create(client, filled_name, wide, overwrite=True)
    rows = make_rows(["wide"], size=2 * E)
    collection.insert(rows)
    assert collection.search(rows[0].embedding[None], 5)[0].ids == ["wide"]


def test_an_alias_is_not_overwritten(client: MilvusClient, filled_name: str) -> None:
    alias = f"alias_of_{filled_name}"
    client.create_alias(filled_name, alias)
    before = set(client.list_collections())
    with pytest.raises(CollectionError, match=f"'{alias}' is an alias of the collection '{filled_name}'"):
        FocusedCollection.create(client, alias, OTHER, overwrite=True)
    assert set(client.list_collections()) == before
    assert counted(client, alias) == counted(client, filled_name) == 3
    client.drop_alias(alias)


def test_aliases_stay_with_the_name(client: MilvusClient, filled_name: str) -> None:
    aliases = [f"{filled_name}_{number}" for number in range(2)]
    for alias in aliases:
        client.create_alias(filled_name, alias)
    FocusedCollection.create(client, filled_name, OTHER, overwrite=True).insert(make_rows(["new"]))
    for alias in aliases:
        assert client.describe_collection(alias)["collection_name"] == filled_name
        assert counted(client, alias) == 1
        client.drop_alias(alias)


@pytest.mark.parametrize("step", ["create_collection", "create_index", "rename_collection", "second rename"])
def test_an_overwrite_that_fails_loses_nothing(
    client: MilvusClient, filled_name: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(client.list_collections())
    real, calls = getattr(client, step.replace("second rename", "rename_collection")), []

    def fails(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if step == "second rename" and len(calls) != 2:
            return real(*arguments, **options)
        raise KeyboardInterrupt  # as a user would at that moment

    with monkeypatch.context() as patch:
        patch.setattr(client, real.__name__, fails)
        with pytest.raises(KeyboardInterrupt):
            FocusedCollection.create(client, filled_name, OTHER, overwrite=True)
    assert set(client.list_collections()) == before
    assert counted(client, filled_name) == 3


def test_another_database_keeps_its_collection_of_that_name(client: MilvusClient, uri: str, filled_name: str) -> None:
    client.create_database("second")
    second = connect(uri, db_name="second")
    FocusedCollection.create(second, filled_name, INFO).insert(make_rows(["kept"]))
    FocusedCollection.create(client, filled_name, OTHER, overwrite=True)
    assert counted(second, filled_name) == 1 and counted(client, filled_name) == 0
    FocusedCollection.create(second, filled_name, OTHER, overwrite=True)
    assert second.list_collections() == [filled_name]
    second.drop_collection(filled_name)
    client.drop_database("second")
    close(second)


def test_names_that_cannot_be(client: MilvusClient) -> None:
    for arguments in ({"name": "a-b"}, {"name": ""}, {"index_type": "MAGIC"}, {"id_max_length": 0}):
        with pytest.raises(InvalidInput):
            FocusedCollection.create(client, **{"name": "x", "model": INFO, **arguments})
    with pytest.raises(CollectionError, match="hidden size 24000"):
        FocusedCollection.create(client, "x", replace(INFO, hidden_size=24_000))
    with pytest.raises(InvalidInput) as caught:
        FocusedCollection.create(client, "-" * 1_000_000, INFO)
    assert len(str(caught.value)) < 400
