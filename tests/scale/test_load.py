"""Parquet -> Milvus -> Parquet, on Lite or on a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pymilvus import MilvusClient

from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import InvalidInput, ModelMismatch
from phs_milvus.milvus.aliases import swap_alias
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.export import export
from phs_milvus.scale.load import load
from phs_milvus.scale.parts import Picture
from phs_milvus.scale.verify import verify
from tests.milvus.support import INFO, OTHER, URI, D, lite_only, make_rows
from tests.scale.support import table_at, unit, write_parts

server_only = pytest.mark.skipif(URI is None, reason="about a Milvus server")


def check_rows(collection: FocusedCollection, pictures: list[Picture]) -> None:
    assert list(collection.iterate_ids()) == sorted(one.key for one in pictures)
    rows = {row["id"]: row for row in collection.get([one.key for one in pictures], ["*", "embedding", "phs_state"])}
    for one in pictures:
        row = rows[one.key]
        assert np.array_equal(np.asarray(row["embedding"], np.float32), one.embedding)
        assert (row["phs_state"], row["digest"]) == (one.state, one.digest)
        assert (row["width"], row["height"], row["album"]) == (640, 480, one.metadata["album"])


def test_rows_go_in_once(tmp_path: Path, client: MilvusClient, name: str) -> None:
    """A load that was interrupted after the first part goes on; a row that changed since is written again."""
    pictures = write_parts(tmp_path, [30, 20, 1])
    collection = FocusedCollection.create(client, name, ModelRecord.of(INFO, "int8"))
    seen: list[int] = []
    first = load([str(tmp_path / "parts/000.parquet")], collection, progress=lambda report: seen.append(report.done))
    assert (first.rows, first.written, first.there) == (30, 30, 0) and seen[-1] == 30
    (changed,) = make_rows(["0/00003.jpg"], seed=9, album=0)
    collection.upsert([changed])
    rest = load([str(tmp_path)], collection)
    assert (rest.rows, rest.written, rest.there, rest.imported) == (51, 22, 29, 0)
    check_rows(collection, pictures)
    again = load([str(tmp_path)], collection)
    assert (again.written, again.there) == (0, 51)


def test_what_was_loaded_is_verified(tmp_path: Path, client: MilvusClient, name: str) -> None:
    pictures = write_parts(tmp_path, [300, 100])
    collection = FocusedCollection.create(client, name, INFO, index_type="FLAT")
    load([str(tmp_path)], collection)
    found = verify([str(tmp_path)], collection, sample=50)
    assert found.good and (found.rows, found.stored, found.sampled) == (400, 400, 50)
    assert found.least_cosine == pytest.approx(1, abs=1e-6) and found.recall == 1
    assert found.state_formats == {"int8": 50}
    assert "least cosine 1.000000" in str(found) and "recall@10 of the index against exact search: 1.0000" in str(found)
    # What is wrong is found: a row that is gone, one of another picture, and one whose state is another's.
    (other,) = make_rows([pictures[1].key], seed=9)
    collection.upsert([other])
    (swapped,) = make_rows([pictures[2].key], seed=0)
    swapped.embedding, swapped.state = pictures[2].embedding, pictures[3].state
    collection.upsert([swapped])
    collection.delete([pictures[0].key])
    found = verify([str(tmp_path)], collection, sample=400)
    assert not found.good and found.missing == [pictures[0].key]
    assert found.differing == [pictures[1].key, pictures[2].key] and found.recall is None
    assert found.least_cosine < 0.9


@pytest.mark.parametrize(("held", "wanted"), [("float16", "int8"), ("int8", "float16"), ("float16", "float16")])
def test_states_keep_their_format_or_are_rounded(
    tmp_path: Path, client: MilvusClient, name: str, held: str, wanted: str
) -> None:
    """Rows of int8 stay what they are in a collection of float16; nothing is gained by unpacking them."""
    pictures = write_parts(tmp_path, [5], held)
    collection = FocusedCollection.create(client, name, INFO, state_format=wanted)
    load([str(tmp_path)], collection)
    found = verify([str(tmp_path)], collection)
    assert found.good and found.state_formats == {"int8" if "int8" in (held, wanted) else "float16": 5}
    states = collection.get([one.key for one in pictures], ["phs_state"])
    exact = state_codec.unpack([str(one.state) for one in pictures], D)
    rounded = state_codec.unpack([row["phs_state"] for row in states], D)
    assert np.abs(exact - rounded).max() <= (0.02 if held != wanted and held == "float16" else 0)
    report = export(collection, str(tmp_path / "again"))
    assert report.written == 5
    assert {row["state_format"] for row in table_at(tmp_path / "again/parts").values()} == set(found.state_formats)


def test_parts_of_other_models_are_refused(tmp_path: Path, client: MilvusClient, name: str) -> None:
    write_parts(tmp_path / "a", [2])
    write_parts(tmp_path / "b", [2], info=OTHER)
    collection = FocusedCollection.create(client, name, OTHER)
    with pytest.raises(ModelMismatch, match="'other'"):
        load([str(tmp_path / "a")], collection)
    with pytest.raises(ModelMismatch, match="into collections of their own"):
        load([str(tmp_path / "b"), str(tmp_path / "a")], collection)
    with pytest.raises(InvalidInput, match="there is no Parquet file at"):
        load([str(tmp_path / "c")], collection)
    with pytest.raises(InvalidInput, match="2 rows have the key of another row"):
        load([str(tmp_path / "b"), str(tmp_path / "b/parts/000.parquet")], collection)
    assert collection.count() == 0


def test_export_writes_what_load_reads(tmp_path: Path, client: MilvusClient, name: str) -> None:
    """Interrupted after two parts, it goes on behind the last key; the files make the same collection."""
    pictures = write_parts(tmp_path, [25])
    collection = FocusedCollection.create(client, name, INFO)
    load([str(tmp_path)], collection)

    def stop(report: object) -> None:
        if report.parts == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(collection, str(tmp_path / "out"), rows_per_part=10, progress=stop)
    report = export(collection, str(tmp_path / "out"), rows_per_part=10)
    assert (report.rows, report.there, report.written, report.parts) == (25, 20, 5, 1)
    rows = table_at(tmp_path / "out/parts")
    assert list(rows) == [one.key for one in pictures]
    assert all(np.array_equal(unit(rows[one.key]), one.embedding) for one in pictures)
    copy = FocusedCollection.create(client, f"{name}_copy", INFO)
    load([str(tmp_path / "out")], copy)
    check_rows(copy, pictures)
    with pytest.raises(InvalidInput, match="holds files of something else"):
        export(collection, str(tmp_path))


def test_an_alias_means_one_collection_until_it_is_opened_again(client: MilvusClient, name: str) -> None:
    old = FocusedCollection.create(client, f"{name}_old", INFO)
    old.insert(make_rows(["a"]))
    new = FocusedCollection.create(client, f"{name}_new", OTHER)
    new.insert(make_rows(["a", "b"]))
    alias = f"{name}_alias"
    try:
        assert swap_alias(client, alias, old.name) is None
        running = FocusedCollection.open(client, alias)
        assert swap_alias(client, alias, new.name) == old.name
        assert running.count() == 1 and running.model.fingerprint == INFO.fingerprint
        opened = FocusedCollection.open(client, alias)
        assert opened.count() == 2 and opened.model.fingerprint == OTHER.fingerprint
    finally:
        client.drop_alias(alias)


@lite_only
def test_lite_has_no_bulk_import(tmp_path: Path, client: MilvusClient, name: str) -> None:
    write_parts(tmp_path, [2])
    collection = FocusedCollection.create(client, name, INFO)
    with pytest.raises(InvalidInput, match="Milvus Lite has no bulk import"):
        load([str(tmp_path)], collection, import_to=str(tmp_path / "staging"))


@server_only
def test_a_server_imports_parquet(tmp_path: Path, client: MilvusClient, name: str) -> None:
    """A load is killed when its import has ended and nobody sees the rows yet: the next one must not import again."""
    tmp_path.chmod(0o755)
    pictures = write_parts(tmp_path, [1500, 500])
    collection = FocusedCollection.create(client, name, INFO)
    staging = tmp_path / "staging"

    def stop(report: object) -> None:
        if list(staging.iterdir()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load([str(tmp_path)], collection, import_to=str(staging), progress=stop)
    report = load([str(tmp_path)], collection, import_to=str(staging))
    assert (report.rows, report.there, report.imported, report.written) == (2000, 2000, 0, 0)
    check_rows(collection, pictures)
    assert verify([str(tmp_path)], collection).good and not list(staging.iterdir())
    more = write_parts(tmp_path / "more", [0, 0, 700])
    report = load([str(tmp_path), str(tmp_path / "more")], collection, import_to=str(staging))
    assert (report.there, report.imported) == (2000, 700)
    check_rows(collection, pictures + more)
