"""One part of an encoding, by a real embedding server; what Ray does with parts is in test_ray.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import InvalidInput, ModelMismatch
from phs_milvus.contract.images import load_image
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.encoding import PartEncoder
from phs_milvus.scale.parts import keys_of, model_of, parts_at
from phs_milvus.scale.places import Place
from tests.milvus.support import OTHER
from tests.scale.support import table_at, unit


def part_of(keys: list[str]) -> pa.Table:
    return pa.table({"key": keys, "metadata": ['{"album": "a"}'] * len(keys)})


@pytest.fixture
def how(tmp_path: Path, address: str) -> PartEncoder:
    places = [Place.of(str(tmp_path / name), name) for name in ("photos", "out")]
    return PartEncoder(*places, partial(Encoder, address), "int8")


def test_a_part_has_what_the_server_gives(
    tmp_path: Path, how: PartEncoder, encoder: Encoder, make_images: Callable[..., list[Path]]
) -> None:
    """Among them a picture on its side: sizes are of the upright picture, as the server sees it."""
    paths = make_images(tmp_path / "photos", 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths[0]).save(paths[0], exif=exif)
    keys = [path.name for path in paths]
    report = how.encode(part_of(keys), encoder)
    assert (report.encoded, report.failed) == (3, 0)
    rows = table_at(tmp_path / "out/parts")
    assert list(rows) == keys and not (tmp_path / "out/errors").exists()
    for path in paths:
        row, expected = rows[path.name], encoder.encode(path, outputs=Outputs(state=True))
        assert unit(row) @ expected.embedding == pytest.approx(1, abs=1e-5)
        assert row["state_format"] == state_codec.format_of(row["state"], encoder.info.hidden_size) == "int8"
        state = state_codec.unpack([row["state"]], encoder.info.hidden_size)[0]
        assert np.abs(state - expected.state).max() < 0.02 * np.abs(expected.state).max()
        assert row["digest"] == load_image(path).digest
        assert (row["width"], row["height"]) == (expected.width, expected.height)
        assert row["metadata"] == f'{{"album": "a", "path": "{path}"}}'
    assert (rows[keys[0]]["width"], rows[keys[0]]["height"]) == (120, 160)
    assert model_of(parts_at([str(tmp_path / "out")])) == ModelRecord.of(encoder.info, "int8")


def test_a_bad_picture_is_a_row_in_the_error_table(
    tmp_path: Path, how: PartEncoder, encoder: Encoder, make_images: Callable[..., list[Path]]
) -> None:
    paths = make_images(tmp_path / "photos", 3)
    paths[1].write_bytes(paths[1].read_bytes()[:700])
    keys = [*(path.name for path in paths), "gone.jpg"]
    for _ in range(2):  # a task that runs twice writes the same files twice
        report = how.encode(part_of(keys), encoder)
        assert (report.encoded, report.failed) == (2, 2)
        assert list(table_at(tmp_path / "out/parts")) == [keys[0], keys[2]]
        errors = table_at(tmp_path / "out/errors")
        assert set(errors) == {keys[1], "gone.jpg"}
        assert errors["gone.jpg"]["error"] == "ImageError" and "No such file" in errors["gone.jpg"]["message"]
    make_images(tmp_path / "photos", 3)
    Image.new("RGB", (40, 30)).save(tmp_path / "photos/gone.jpg")
    how.encode(part_of(keys), encoder)
    assert list(table_at(tmp_path / "out/parts")) == keys and not table_at(tmp_path / "out/errors")


def test_parts_of_another_model_are_not_added_to(
    tmp_path: Path, how: PartEncoder, encoder: Encoder, make_images: Callable[..., list[Path]]
) -> None:
    (path,) = make_images(tmp_path / "photos", 1)
    other = PartEncoder(how.source, how.target, how.open_encoder, "int8", ModelRecord.of(OTHER, "int8"))
    with pytest.raises(ModelMismatch, match="'other'"):
        other.encode(part_of([path.name]), encoder)
    assert not (tmp_path / "out").exists()


def test_pictures_are_those_that_ingest_takes(tmp_path: Path, make_images: Callable[..., list[Path]]) -> None:
    make_images(tmp_path / "b", 1)
    make_images(tmp_path / "a", 2)
    (tmp_path / "a/notes.txt").write_text("no picture")
    make_images(tmp_path / ".hidden", 1)
    place = Place.of(str(tmp_path), "input")
    assert list(place.pictures()) == ["a/image-0000.jpg", "a/image-0001.jpg", "b/image-0000.jpg"]
    with pytest.raises(InvalidInput, match="is not a folder"):
        list(Place.of(str(tmp_path / "nothing"), "input").pictures())
    with pytest.raises(InvalidInput, match="cannot open nosuch://bucket"):
        Place.of("nosuch://bucket/x", "input")


def test_a_bucket_is_read_and_written_like_a_folder(
    tmp_path: Path, encoder: Encoder, address: str, make_images: Callable[..., list[Path]]
) -> None:
    """fsspec's memory stands for a bucket: both are object stores, opened by a URI."""
    bucket = fsspec.filesystem("memory")
    for path in make_images(tmp_path, 2):
        bucket.pipe(f"/bucket/photos/a/{path.name}", path.read_bytes())
    bucket.pipe("/bucket/photos/notes.txt", b"no picture")
    bucket.pipe("/bucket/photos/.trash/x.jpg", b"hidden")
    source, target = (Place.of(f"memory://bucket/{name}", name) for name in ("photos", "out"))
    assert not source.local
    keys = list(source.pictures())
    assert keys == ["a/image-0000.jpg", "a/image-0001.jpg"]
    how = PartEncoder(source, target, partial(Encoder, address), "float16")
    assert how.encode(part_of(keys), encoder).encoded == 2
    (part,) = parts_at(["memory://bucket/out"])
    assert keys_of(part).to_pylist() == keys and model_of([part]).state_format == "float16"
    bucket.rm("/bucket", recursive=True)
