"""States for the rows of somebody else's collection, from real pictures through a real server."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, ImageError, InvalidInput, ModelMismatch
from phs_milvus.contract.images import load_image
from phs_milvus.ingest.aio import backfill_async
from phs_milvus.ingest.backfill import backfill
from phs_milvus.ingest.progress import BackfillReport
from phs_milvus.milvus.collection import FocusedCollection, close, connect
from tests.ingest.support import URI, MakeImages

NAME = "products"


@pytest.fixture
def owned(client: MilvusClient) -> Iterator[Callable[..., list[int]]]:
    """Makes a collection with keys that Milvus makes up, and returns them in order."""

    def make(paths: list[Path], embeddings: np.ndarray) -> list[int]:
        return make_owned(client, paths, embeddings)

    yield make
    for name in (NAME, f"{NAME}_phs"):
        client.drop_collection(name)


def make_empty(client: MilvusClient, *, auto_id: bool) -> None:
    """A collection as its owner has it."""
    schema = client.create_schema(auto_id=auto_id)
    schema.add_field("sku", DataType.INT64, is_primary=True)
    schema.add_field("vec", DataType.FLOAT_VECTOR, dim=48)
    schema.add_field("file", DataType.VARCHAR, max_length=200)
    index = client.prepare_index_params()
    index.add_index("vec", index_type="FLAT", metric_type="COSINE")
    client.create_collection(NAME, schema=schema, index_params=index)


def make_owned(client: MilvusClient, paths: list[Path], embeddings: np.ndarray) -> list[int]:
    make_empty(client, auto_id=True)
    rows = [{"vec": vector, "file": path.name} for path, vector in zip(paths, embeddings, strict=True)]
    return list(client.insert(NAME, rows)["ids"])


def embeddings_of(encoder: Encoder, paths: list[Path]) -> np.ndarray:
    return np.stack([encoder.encode(path).embedding for path in paths])


def fill(collection: FocusedCollection, encoder: Encoder, root: Path, **options: object) -> BackfillReport:
    where = {"images": root, "image_field": "file"}
    return backfill(collection, encoder, **{**where, "progress": False, **options})


def test_rows_get_the_states_of_their_pictures(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 30)
    ids = owned(paths, 7 * embeddings_of(encoder, paths))  # not of norm 1, which COSINE does not mind
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    seen = []
    report = fill(collection, encoder, root, batch_size=8, progress=lambda done, total: seen.append((done, total)))
    assert (report.rows, report.written, report.failed_count) == (30, 30, 0) and seen[-1] == (30, 30)
    stored = collection.side.read(ids)
    assert [one.digest for one in stored] == [load_image(path).digest for path in paths]
    states = state_codec.unpack([one.state for one in stored], encoder.info.hidden_size)
    ones = np.ones((30, encoder.info.heads), np.float32)
    scores = encoder.rerank(embeddings_of(encoder, paths), ones, states).diagonal()
    np.testing.assert_allclose(scores, 1, atol=1e-3)
    again = backfill(FocusedCollection.open(client, NAME), encoder, progress=False)  # remembers where pictures are
    assert (again.written, again.fitting) == (0, 30)


def test_stopped_early_it_goes_on_the_next_time(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 100)
    owned(paths, embeddings_of(encoder, paths))
    collection, stop = FocusedCollection.attach(client, NAME, model=encoder.info), threading.Event()
    first = fill(collection, encoder, root, stop=stop, progress=lambda done, total: stop.set())
    assert 1 <= first.written < 100
    rest = asyncio.run(backfill_async(collection, encoder, progress=False))
    assert (rest.written, rest.fitting, rest.failed_count) == (100 - first.written, first.written, 0)


def test_new_changed_and_deleted_rows(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 6)
    ids = owned(paths[:4], embeddings_of(encoder, paths[:4]))
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    fill(collection, encoder, root)
    client.delete(NAME, ids=ids[:1])
    added = [{"vec": encoder.encode(path).embedding, "file": path.name} for path in paths[4:]]
    client.insert(NAME, added)
    report = fill(collection, encoder, root, prune=True)
    assert (report.rows, report.written, report.fitting, report.pruned) == (5, 2, 3, 1)
    assert set(collection.side.iterate_ids()) == set(collection.iterate_ids())


def test_rows_that_differ_or_have_no_picture_are_reported(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 8)
    embeddings = embeddings_of(encoder, paths)
    embeddings[2] = -embeddings[2]
    embeddings[3] = 0
    ids = owned(paths, embeddings)
    paths[5].unlink()
    paths[6].write_bytes(b"nothing")
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    report = fill(collection, encoder, root)
    assert (report.written, report.differing, report.failed_count) == (4, 2, 4)
    reasons = dict(report.failed)
    assert set(reasons) == {ids[index] for index in (2, 3, 5, 6)}
    assert "cosine -1.000" in reasons[ids[2]] and paths[5].name in reasons[ids[5]]
    assert str(ids[2]) in str(report)
    assert [bool(one.state) for one in collection.side.read(ids)] == [index not in (2, 3, 5, 6) for index in range(8)]


def test_a_collection_of_another_model_stops_early(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 80)
    owned(paths, np.random.default_rng(0).normal(size=(80, 48)).astype(np.float32))
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    seen = []
    with pytest.raises(
        ModelMismatch, match=r"24 of 24 rows compared .* 'vec' .*'products' was filled by another model"
    ):
        fill(collection, encoder, root, progress=lambda done, total: seen.append(done))
    assert len(seen) < 30 and collection.side.count() == 0
    report = fill(collection, encoder, root, keep_going=True)
    assert (report.differing, report.written) == (80, 0)


def test_what_agrees_is_kept_where_most_do_not(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 40)
    embeddings = embeddings_of(encoder, paths)
    embeddings[5:25] = -embeddings[5:25]
    owned(paths, embeddings)
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    with pytest.raises(ModelMismatch, match="--keep-going"):
        fill(collection, encoder, root)
    assert collection.side.count() == 5
    report = fill(collection, encoder, root, keep_going=True)
    assert (report.fitting, report.written, report.differing) == (5, 15, 20)


def test_a_state_does_not_outlive_its_embedding(
    client: MilvusClient, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 3)
    make_empty(client, auto_id=False)
    try:
        rows = [{"sku": n, "vec": encoder.encode(path).embedding, "file": path.name} for n, path in enumerate(paths)]
        client.insert(NAME, rows)
        collection = FocusedCollection.attach(client, NAME, model=encoder.info)
        fill(collection, encoder, root)
        client.upsert(NAME, [rows[1] | {"vec": rows[0]["vec"], "file": "gone.jpg"}, rows[2] | {"vec": -rows[2]["vec"]}])
        report = fill(collection, encoder, root)
        assert (report.fitting, report.failed_count, report.differing) == (1, 2, 1)
        assert list(collection.side.iterate_ids()) == [0]
    finally:
        for name in (NAME, f"{NAME}_phs"):
            client.drop_collection(name)


def test_a_wrong_folder_stops_early(
    client: MilvusClient, owned: Callable, root: Path, tmp_path: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 1) * 300
    owned(paths, np.repeat(embeddings_of(encoder, paths[:1]), 300, axis=0))
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="none of the first 64 rows' pictures.*image_field"):
        fill(collection, encoder, tmp_path / "empty")
    assert collection.side.attachment.images is None  # what did not work is not remembered


def test_a_server_of_pictures_that_is_away_stops_it(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 1) * 80
    owned(paths, np.repeat(embeddings_of(encoder, paths[:1]), 80, axis=0))
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    with pytest.raises(ImageError, match="64 pictures in a row could not be fetched.*Connection refused"):
        fill(collection, encoder, root, images="http://127.0.0.1:9/{file}", image_field=None)


def test_what_cannot_be_used_is_named(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 1)
    owned(paths, embeddings_of(encoder, paths))
    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    for options, kind, message in (
        ({"images": root / "none"}, InvalidInput, "is no folder"),
        ({"image_field": "nope"}, InvalidInput, "no field 'nope'; it has sku, file"),
        ({"images": "ftp://x/{id}"}, InvalidInput, "http or https URL"),
        ({"images": "https://x/y"}, InvalidInput, "name of a field"),
        ({"images": "https://x/{nope}"}, InvalidInput, "no field 'nope'"),
        ({"images": "https://x/{id:08d}"}, InvalidInput, "name of a field, and nothing else"),
        ({"images": "https://x/{file!r}"}, InvalidInput, "name of a field, and nothing else"),
        ({"images": None, "image_field": None}, InvalidInput, "say where the pictures are"),
        ({"batch_size": 0}, InvalidInput, "batch_size"),
    ):
        with pytest.raises(kind, match=message):
            fill(collection, encoder, root, **options)
    own = FocusedCollection.create(client, "own", encoder.info, overwrite=True)
    with pytest.raises(CollectionError, match="states in its own rows"):
        fill(own, encoder, root)


def test_pictures_from_a_function(
    client: MilvusClient, owned: Callable, root: Path, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 4)
    ids = owned(paths, embeddings_of(encoder, paths))

    def picture(row: dict) -> bytes | None:
        if row["sku"] == ids[1]:
            raise OSError("the disk is away")
        return None if row["sku"] == ids[2] else (root / row["file"]).read_bytes()

    collection = FocusedCollection.attach(client, NAME, model=encoder.info)
    report = backfill(collection, encoder, picture, progress=False)
    assert report.written == 2
    assert "the disk is away" in dict(report.failed)[ids[1]] and "has none" in dict(report.failed)[ids[2]]


PROGRAM = """
import sys
from phs_milvus import Encoder, FocusedCollection, backfill, connect
root, uri, address = sys.argv[1:]
with Encoder(address) as encoder:
    collection = FocusedCollection.attach(connect(uri), "products", model=encoder.info)
    backfill(collection, encoder, root, image_field="file", batch_size=7,
             progress=lambda done, total: print(done, flush=True))
"""


def test_kill_9(root: Path, tmp_path: Path, address: str, encoder: Encoder, make_images: MakeImages) -> None:
    """What was stored is whole and stays; the next run makes the rest."""
    uri = URI or str(tmp_path / "killed.db")
    paths = make_images(root, 200)
    client = connect(uri)
    for name in (NAME, f"{NAME}_phs"):
        client.drop_collection(name)
    ids = make_owned(client, paths, embeddings_of(encoder, paths))
    close(client)
    command = [sys.executable, "-c", PROGRAM, str(root), uri, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 60:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    client = connect(uri)
    try:
        collection = FocusedCollection.open(client, NAME)
        stored = [one.state for one in collection.side.read(ids) if one.state]
        assert 30 < len(stored) < 200
        state_codec.unpack(stored, encoder.info.hidden_size)
        report = fill(collection, encoder, root)
        assert (report.written, report.fitting) == (200 - len(stored), len(stored))
        assert len(list(collection.side.iterate_ids())) == 200
    finally:
        for name in (NAME, f"{NAME}_phs"):
            client.drop_collection(name)
        close(client)
