"""Ingest of real files through a real encoder: what is stored, skipped, pruned and reported."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pymilvus import DataType, FieldSchema, MilvusClient

from phs_milvus.client.encoder import Encoder, Outputs
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import CollectionError, InvalidInput, ModelMismatch
from phs_milvus.milvus.collection import FocusedCollection, Row
from tests.ingest.support import URI, MakeImages, check_complete, rows_of, run


def test_first_run_and_what_is_stored(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 9)
    make_images(root / "a" / "b", 4, seed=1)
    report = run(root, collection, encoder, batch_size=5, metadata=lambda path: {"folder": path.parent.name})
    assert (report.found, report.encoded, report.skipped_unchanged, report.changed) == (13, 13, 0, 0)
    assert (report.pruned, report.failed, report.failed_count) == (0, [], 0)
    rows = check_complete(root, collection)
    for name in ("image-0003.jpg", "a/b/image-0001.jpg"):
        row, encoding = rows[name], encoder.encode(root / name, outputs=Outputs(state=True))
        assert (row["width"], row["height"], row["folder"]) == (160, 120, (root / name).parent.name)
        state = state_codec.unpack([row["phs_state"]], encoder.info.hidden_size)[0]
        step = np.abs(encoding.state).max(axis=1, keepdims=True) / 127
        assert (np.abs(state - encoding.state) < 0.51 * step + 2e-3).all()  # batched differently
        np.testing.assert_allclose(row["embedding"], encoding.embedding, atol=1e-5)
    assert "13 images" in str(report) and "13 encoded" in str(report)


def test_only_new_and_changed_files_are_encoded(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 8)
    run(root, collection, encoder)
    before = rows_of(collection)
    again = run(root, collection, encoder)
    assert (again.found, again.encoded, again.skipped_unchanged) == (8, 0, 8)
    paths[2].write_bytes(paths[3].read_bytes())
    paths[4].touch()
    make_images(root / "new", 2, seed=5)
    paths[5].unlink()
    third = run(root, collection, encoder)
    assert (third.found, third.encoded, third.changed, third.skipped_unchanged) == (9, 3, 1, 6)
    after = rows_of(collection)
    assert set(after) == set(before) | {"new/image-0000.jpg", "new/image-0001.jpg"}
    assert after["image-0002.jpg"]["phs_state"] == before["image-0003.jpg"]["phs_state"]
    assert {name: row for name, row in before.items() if after[name] != row}.keys() == {"image-0002.jpg"}
    pruned = run(root, collection, encoder, prune=True)
    assert (pruned.encoded, pruned.pruned) == (0, 1)
    check_complete(root, collection)


def test_bad_files_are_reported_and_the_rest_is_stored(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 6)
    run(root, collection, encoder)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])  # was fine: its row stays
    (root / "empty.jpg").touch()
    (root / "text.png").write_text("no image")
    (root / "dangling.jpg").symlink_to(root / "nowhere.jpg")
    (root / "half.jpg").write_bytes(whole[:400])
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    undecodable = os.fsencode(root) + b"/bad-\xff.jpg"
    shutil.copy(paths[0], undecodable)
    deep = root.joinpath(*["d" * 250] * 4)
    deep.mkdir(parents=True)
    shutil.copy(paths[0], deep / ("é" * 60 + ".jpg"))
    make_images(root / "good", 3, seed=3)
    report = run(root, collection, encoder, batch_size=2)
    reasons = dict(report.failed)
    assert len(reasons) == report.failed_count == 8
    assert "empty" in reasons["empty.jpg"]
    assert "not an image" in reasons["text.png"]
    assert "not found" in reasons["dangling.jpg"]
    assert "not a regular file" in reasons["pipe.jpg"]
    assert "not valid Unicode" in reasons["bad-\\udcff.jpg"]
    assert "bytes" in reasons[f"{'/'.join(['d' * 250] * 4)}/{'é' * 60}.jpg"]
    assert {"image-0001.jpg", "half.jpg"} < set(reasons)
    assert (report.found, report.encoded, report.skipped_unchanged) == (16, 3, 5)
    assert collection.count() == 9
    assert "failed: empty.jpg" in str(report)


def test_what_is_left_out_is_said(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    paths = make_images(root, 2)
    Image.open(paths[1]).save(root / "pano.mpo", save_all=True, append_images=[Image.open(paths[0])])
    for name in ("a.xml", "b.xml", "c.CR2", "notes"):
        (root / name).write_text("x")
    (root / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    report = run(root, collection, encoder)
    assert (report.found, report.encoded, report.failed_count) == (4, 3, 1)
    assert "HEIF" in dict(report.failed)["IMG_1.HEIC"]
    assert "  4 files not taken: 2 .xml, 1 .cr2, 1 without extension" in str(report).splitlines()


def test_a_file_at_which_the_server_stops_fails_alone(
    root: Path,
    tiny_model: Path,
    encoder: Encoder,
    collection: FocusedCollection,
    make_images: MakeImages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One picture holds the server for longer than the client waits; whatever is in flight with it waits as well."""
    from phs_server.app import ServerThread
    from phs_server.config import Settings
    from phs_server.flow.pipeline import Pipeline

    paths = make_images(root, 12)
    poison = paths[5].read_bytes()
    views = Pipeline._views

    def held(self: Pipeline, decode: Any, items: Any) -> Any:
        if items[0].image == poison:
            time.sleep(6)
        return views(self, decode, items)

    monkeypatch.setattr(Pipeline, "_views", held)
    with (
        ServerThread(Settings(model=str(tiny_model), port=0, precision="float32", decode_threads=1)) as server,
        Encoder(server.address, timeout=4) as waiting,
    ):
        report = run(root, collection, waiting)
    assert [name for name, _ in report.failed] == [paths[5].name]
    assert (report.encoded, collection.count()) == (11, 11)
    again = run(root, collection, encoder)
    assert (again.encoded, again.skipped_unchanged) == (1, 11)


def test_prune_leaves_what_is_not_its_own(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    """Rows of another folder, and rows that no ingest wrote, stay."""
    elsewhere = root.parent / "elsewhere"
    make_images(root, 4)
    for path in make_images(elsewhere, 3, seed=2):
        path.rename(path.with_name(f"other-{path.name}"))
    run(root, collection, encoder)
    run(elsewhere, collection, encoder)
    by_hand = encoder.encode(root / "image-0000.jpg", outputs=Outputs(state=True))
    collection.insert([Row("by hand", by_hand.embedding, by_hand.state)])
    (root / "image-0001.jpg").unlink()
    assert run(root, collection, encoder, prune=True).pruned == 1
    assert collection.count() == 3 + 3 + 1
    for path in root.iterdir():
        path.unlink()
    with pytest.raises(InvalidInput, match="is the disk mounted"):
        run(root, collection, encoder, prune=True)
    assert collection.count() == 7


def test_a_second_folder_does_not_take_the_ids_of_the_first(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 3)
    run(root, collection, encoder)
    before = rows_of(collection)
    second = root.with_name("second")
    make_images(second, 4, seed=9)
    shutil.copy(root / "image-0002.jpg", second)  # the same picture under the same name is no conflict
    report = run(second, collection, encoder)
    assert (report.encoded, report.skipped_unchanged, report.failed_count) == (1, 1, 2)
    assert dict(report.failed).keys() == {"image-0000.jpg", "image-0001.jpg"}
    assert all(str(root) in reason for _, reason in report.failed)
    after = rows_of(collection)
    assert {name: after[name] for name in before} == before


def test_a_folder_moved_behind_a_link_is_still_itself(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 2)
    run(root, collection, encoder)
    moved = root.rename(root.with_name("moved"))
    root.symlink_to(moved)
    make_images(moved, 1, seed=9)
    report = run(root, collection, encoder)
    assert (report.changed, report.skipped_unchanged, report.failed_count) == (1, 1, 0)
    assert {row["path"] for row in collection.get(["image-0000.jpg", "image-0001.jpg"], ["path"])} == {
        str(moved / "image-0000.jpg"),
        str(moved / "image-0001.jpg"),
    }


def test_a_moved_folder_is_not_encoded_again(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 5)
    run(root, collection, encoder, metadata=lambda path: {"note": "n"})
    before = rows_of(collection)
    moved = root.rename(root.with_name("moved"))
    report = run(moved, collection, encoder, batch_size=2)
    assert (report.encoded, report.skipped_unchanged) == (0, 5)
    after = check_complete(moved, collection)
    for name, row in before.items():
        assert row | {"path": str(moved / name)} == after[name]
    (moved / "image-0000.jpg").unlink()
    assert run(moved, collection, encoder, prune=True).pruned == 1


@pytest.mark.skipif(URI is not None, reason="Milvus 2.3 has one vector a row")
def test_a_moved_folder_keeps_the_vectors_of_its_rows(
    root: Path, client: MilvusClient, encoder: Encoder, make_images: MakeImages
) -> None:
    make_images(root, 3)
    clip = FieldSchema("clip", DataType.FLOAT_VECTOR, dim=4)
    collection = FocusedCollection.create(client, "two_vectors", encoder.info, fields=[clip])
    index = client.prepare_index_params()
    index.add_index("clip", index_type="FLAT", metric_type="COSINE")
    client.create_index("two_vectors", index)
    run(root, collection, encoder, metadata=lambda path: {"clip": [0.5, 0.5, 0.5, 0.5]})
    moved = root.rename(root.with_name("moved"))
    assert run(moved, collection, encoder).skipped_unchanged == 3
    rows = collection.get([f"image-000{number}.jpg" for number in range(3)], ["path", "clip"])
    assert [Path(row["path"]).parent for row in rows] == [moved] * 3
    assert [row["clip"] for row in rows] == [[0.5] * 4] * 3
    client.drop_collection("two_vectors")


def test_progress(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages, capsys: pytest.CaptureFixture
) -> None:
    make_images(root, 5)
    (root / "empty.jpg").touch()
    calls: list[tuple[int, int]] = []
    run(root, collection, encoder, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 6) for done in range(1, 7)]
    run(root, collection, encoder, progress=True)
    assert "6/6" in capsys.readouterr().err


def test_what_cannot_be_ingested(
    root: Path, collection: FocusedCollection, encoder: Encoder, make_images: MakeImages
) -> None:
    with pytest.raises(InvalidInput, match="is not a folder"):
        run(root, collection, encoder)
    root.mkdir()
    assert run(root, collection, encoder).found == 0
    make_images(root, 1)
    with pytest.raises(InvalidInput, match="batch_size"):
        run(root, collection, encoder, batch_size=0)
    report = run(root, collection, encoder, metadata=lambda path: {"embedding": 1})
    assert report.failed_count == 1 and "cannot be called 'embedding'" in report.failed[0][1]
    other = replace(encoder.info, model_id="other", fingerprint="0")
    mismatched = FocusedCollection.create(collection.client, "other", other, overwrite=True)
    with pytest.raises(ModelMismatch, match="'other'"):
        run(root, mismatched, encoder)


def test_attached_collections(root: Path, client: MilvusClient, encoder: Encoder, make_images: MakeImages) -> None:
    def attach(key: DataType, *extra: str) -> FocusedCollection:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        limit = {"max_length": 100} if key == DataType.VARCHAR else {}
        schema.add_field("pk", key, is_primary=True, **limit)
        schema.add_field("v", DataType.FLOAT_VECTOR, dim=encoder.info.embedding_size)
        schema.add_field("s", DataType.VARCHAR, max_length=65_535)
        for name in extra:
            schema.add_field(name, DataType.VARCHAR, max_length=500)
        index = client.prepare_index_params()
        index.add_index("v", index_type="FLAT", metric_type="COSINE")
        if client.has_collection("foreign"):
            client.drop_collection("foreign")
        client.create_collection("foreign", schema=schema, index_params=index)
        return FocusedCollection.attach(client, "foreign", embedding_field="v", state_field="s", model=encoder.info)

    paths = make_images(root, 3)
    with pytest.raises(CollectionError, match="no VARCHAR field 'digest'"):
        run(root, attach(DataType.VARCHAR), encoder)
    with pytest.raises(CollectionError, match="integer ids"):
        run(root, attach(DataType.INT64, "digest"), encoder)
    collection = attach(DataType.VARCHAR, "digest")
    assert run(root, collection, encoder).encoded == 3
    assert run(root, collection, encoder).skipped_unchanged == 3
    with pytest.raises(CollectionError, match="no field 'path'"):
        run(root, collection, encoder, prune=True)
    collection = attach(DataType.VARCHAR, "digest", "path")
    run(root, collection, encoder)
    paths[0].unlink()
    assert run(root, collection, encoder, prune=True).pruned == 1
