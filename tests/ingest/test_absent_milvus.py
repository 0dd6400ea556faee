"""Milvus goes away during an ingest: it is waited for, and if it stays away the next run goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pymilvus import MilvusClient

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import MilvusUnavailable
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.ingest.support import MakeImages, check_complete, run
from tests.relay import Relay, milvus_address


@pytest.fixture
def relay(milvus_uri: str, client: MilvusClient) -> Iterator[Relay]:
    relay = Relay(milvus_address(milvus_uri))
    yield relay
    relay.close()


@pytest.fixture
def behind(relay: Relay, collection: FocusedCollection) -> Iterator[FocusedCollection]:
    """The collection, reached through the relay."""
    through = connect(relay.uri)
    yield FocusedCollection.open(through, collection.name)
    close(through)


def test_it_comes_back(
    root: Path,
    collection: FocusedCollection,
    behind: FocusedCollection,
    relay: Relay,
    encoder: Encoder,
    make_images: MakeImages,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_images(root, 40)
    timers: list[threading.Timer] = []

    def leave(done: int, total: int) -> None:
        if done == 15:
            relay.go_away()
            timers.append(threading.Timer(4, relay.come_back))
            timers[0].start()

    report = run(root, behind, encoder, batch_size=10, progress=leave)
    assert (report.encoded, report.failed_count) == (40, 0)
    check_complete(root, collection)
    assert capfd.readouterr() == ("", "")


def test_it_stays_away(
    root: Path,
    collection: FocusedCollection,
    behind: FocusedCollection,
    relay: Relay,
    encoder: Encoder,
    make_images: MakeImages,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make_images(root, 40)

    def leave(done: int, total: int) -> None:
        if done == 25:
            relay.go_away()

    with pytest.raises(MilvusUnavailable, match=r"20 files were stored, and the next run goes on from there"):
        run(root, behind, encoder, batch_size=10, progress=leave, patience=1)
    assert collection.count() == 20 and capfd.readouterr() == ("", "")
    report = run(root, collection, encoder)
    assert (report.encoded, report.skipped_unchanged) == (20, 20)
    check_complete(root, collection)
