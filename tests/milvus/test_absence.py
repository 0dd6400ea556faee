"""Milvus goes away or stops in the middle: one error, soon, in one line, and nothing else is printed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pymilvus import MilvusClient

from phs_milvus.contract.errors import CollectionError, InvalidInput, MilvusUnavailable
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.milvus.support import INFO, make_rows
from tests.relay import Relay, milvus_address

ROWS = make_rows(["a", "b"])
QUERY = ROWS[0].embedding[None]


@pytest.fixture
def relay(uri: str, client: MilvusClient) -> Iterator[Relay]:
    relay = Relay(milvus_address(uri))
    yield relay
    relay.close()


@pytest.fixture
def behind(relay: Relay, name: str, client: MilvusClient) -> Iterator[FocusedCollection]:
    """A collection of two rows, reached through the relay."""
    FocusedCollection.create(client, name, INFO).insert(ROWS)
    through = connect(relay.uri)
    collection = FocusedCollection.open(through, name)
    assert collection.count() == 2
    yield collection
    close(through)


CALLS: dict[str, Callable[[FocusedCollection], object]] = {
    "search": lambda it: it.search(QUERY, 1),
    "search by a filter": lambda it: it.search(QUERY, 1, filter="x > 3"),
    "get": lambda it: it.get(["a"]),
    "count": lambda it: it.count(),
    "iterate": lambda it: list(it.iterate_ids()),
    "insert": lambda it: it.insert(make_rows(["c"])),
    "upsert": lambda it: it.upsert(ROWS),
    "delete": lambda it: it.delete(["b"]),
    "open": lambda it: FocusedCollection.open(it.client, it.name),
    "create": lambda it: FocusedCollection.create(it.client, f"{it.name}_new", INFO),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_was_killed(
    relay: Relay, behind: FocusedCollection, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    relay.go_away()
    started = time.monotonic()
    with pytest.raises(MilvusUnavailable) as caught:
        CALLS[call](behind)
    assert time.monotonic() - started < 30
    message = str(caught.value)
    assert "Milvus does not answer" in message and "do the same again" in message and "\n" not in message
    assert isinstance(caught.value, CollectionError) and capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("call", ["search", "get", "upsert", "open"])
def test_a_server_that_was_stopped_shows_soon(
    relay: Relay, behind: FocusedCollection, call: str, capfd: pytest.CaptureFixture[str]
) -> None:
    relay.freeze()
    started = time.monotonic()
    with pytest.raises(MilvusUnavailable, match="Milvus does not answer"):
        CALLS[call](behind)
    assert time.monotonic() - started < 40  # gRPC alone would take 79 s
    assert capfd.readouterr() == ("", "")


def test_a_timeout_is_kept(relay: Relay, behind: FocusedCollection) -> None:
    relay.freeze()
    for call in (
        lambda: behind.search(QUERY, 1, timeout=0.5),
        lambda: behind.search(QUERY, 1, filter="x > 3", timeout=0.5),
        lambda: behind.get(["a"], timeout=0.5),
        lambda: connect(relay.uri, "another:connection", timeout=0.5),
    ):
        started = time.monotonic()
        with pytest.raises(MilvusUnavailable, match="no answer in time"):
            call()
        assert time.monotonic() - started < 5
    for wrong in (0, -1, float("nan"), "3", True):
        with pytest.raises(InvalidInput) as caught:
            behind.search(QUERY, 1, timeout=wrong)  # type: ignore[arg-type]  # what is tested
        assert caught.value.field == "timeout"


def test_after_it_is_back(relay: Relay, behind: FocusedCollection) -> None:
    relay.go_away()
    with pytest.raises(MilvusUnavailable):
        behind.count()
    relay.come_back()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            assert behind.search(QUERY, 1)[0].ids == ["a"]
            return
        except MilvusUnavailable:
            time.sleep(0.5)
    pytest.fail("it is not found again")


def test_patience(relay: Relay, behind: FocusedCollection) -> None:
    """Long work waits for a server that restarts; an insert is not done twice."""
    relay.go_away()
    told: list[str] = []
    back = threading.Timer(3, relay.come_back)
    back.start()
    with behind.patient(60, told.append):
        assert behind.count() == 2
        behind.upsert(make_rows(["c"]))
    back.join()
    assert len(told) == 1 and "trying again for 60 s" in told[0]
    relay.go_away()
    started = time.monotonic()
    with behind.patient(2, told.append):
        with pytest.raises(MilvusUnavailable):
            behind.count()
        assert time.monotonic() - started >= 2
        assert len(told) == 2
        with pytest.raises(MilvusUnavailable):
            behind.insert(make_rows(["d"]))
        assert len(told) == 2
    with pytest.raises(MilvusUnavailable):
        behind.count()
    assert len(told) == 2


def test_a_filter_that_is_wrong_prints_nothing(filled: FocusedCollection, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput):
        filled.search(QUERY, 1, filter="album >>> 3")
    with pytest.raises(CollectionError):
        FocusedCollection.open(filled.client, "nowhere")
    assert capfd.readouterr() == ("", "")


def test_no_such_database(uri: str, relay: Relay) -> None:
    with pytest.raises(CollectionError, match=r"there is no database 'nowhere'; there are: default"):
        connect(uri, db_name="nowhere")
    with pytest.raises(CollectionError, match="there is no database 'nowhere'"):
        connect(f"{relay.uri}/nowhere")


def test_a_database_in_the_uri(client: MilvusClient, uri: str, relay: Relay, name: str) -> None:
    client.create_database("habits")
    there = connect(f"{relay.uri}/habits")
    FocusedCollection.create(there, name, INFO).insert(ROWS)
    again = connect(uri, db_name="habits")
    assert FocusedCollection.open(again, name).count() == 2
    assert not client.has_collection(name)
    there.drop_collection(name)
    client.drop_database("habits")
    close(there)
    close(again)
