"""Files of states: what is read of them, and files that are cut off, of another model, or otherwise wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from phs_milvus import Encoder
from phs_milvus.contract.errors import ModelMismatch, PhsError, StateError
from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.types import ModelInfo
from phs_server.flow.states_file import StatesFile
from phs_server.model.reranking import DeviceStates
from tests.server.edge.states_files import states, write_states
from tests.servers import ServerProcess

COUNT = 250
STATES = states(COUNT)
KEYS = [f"k{row}" for row in range(COUNT)]


@pytest.fixture(scope="module")
def info(encoder: Encoder) -> ModelInfo:
    return encoder.info


@pytest.fixture(scope="module")
def good(info: ModelInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_states(tmp_path_factory.mktemp("good") / "good.states", info.fingerprint, KEYS, STATES)


ROWS = [slice(0, 250), slice(0, 1), slice(99, 101), slice(100, 200), slice(120, 250), np.array([0, 99, 100, 249])]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_any_rows_are_read(good: Path, info: ModelInfo, rows: slice | np.ndarray) -> None:
    file = StatesFile(str(good), info)
    assert len(file) == COUNT and len(file.parts) == 3 and file.nbytes == STATES.nbytes
    found = file.at(rows)
    np.testing.assert_array_equal(found.values, STATES.values[rows])
    np.testing.assert_array_equal(found.scales, STATES.scales[rows])
    # What a GPU holds is the same.
    held = DeviceStates.joined(file.parts, torch.device("cpu")).part(rows)
    np.testing.assert_array_equal(held[:].numpy(), STATES.to_float16()[rows])


def test_what_is_not_looked_at_is_not_read(good: Path, info: ModelInfo) -> None:
    before = pa.total_allocated_bytes()
    file = StatesFile(str(good), info)
    assert pa.total_allocated_bytes() == before
    assert not file.at(slice(0, 100)).values.flags.owndata


def test_an_empty_file_is_a_file(tmp_path: Path, info: ModelInfo) -> None:
    file = StatesFile(str(write_states(tmp_path / "empty.states", info.fingerprint, [], STATES[:0])), info)
    assert len(file) == 0 and not file.parts


def spoiled(change: Callable[[Int8States], None]) -> Int8States:
    some = Int8States(STATES.values.copy(), STATES.scales.copy())
    change(some)
    return some


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1, 512])
def test_scales_that_no_state_has(tmp_path: Path, info: ModelInfo, scale: float) -> None:
    wrong = spoiled(lambda some: some.scales.__setitem__((230, 1, 0), scale))
    with pytest.raises(StateError, match="holds a scale that is NaN, negative or too large"):
        StatesFile(str(write_states(tmp_path / "x.states", info.fingerprint, KEYS, wrong)), info)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_files_that_are_cut_off(good: Path, tmp_path: Path, info: ModelInfo, share: float) -> None:
    data = good.read_bytes()
    (tmp_path / "cut.states").write_bytes(data[: int(share * len(data))])
    with pytest.raises(StateError, match=r"cut\.states"):
        StatesFile(str(tmp_path / "cut.states"), info)


def test_the_middle_cut_out_of_a_file(good: Path, tmp_path: Path, info: ModelInfo) -> None:
    """Its end says where batches are, and they are not there."""
    data = good.read_bytes()
    (tmp_path / "cut.states").write_bytes(data[: len(data) // 3] + data[-len(data) // 4 :])
    with pytest.raises(StateError, match=r"cut\.states"):
        StatesFile(str(tmp_path / "cut.states"), info)


def test_bytes_turned_over_are_refused_or_harmless(good: Path, tmp_path: Path, info: ModelInfo) -> None:
    rng, data = np.random.default_rng(0), bytearray(good.read_bytes())
    refused = 0
    for _ in range(150):
        # Where batches and columns begin and end is said at the end, and at the start.
        at = int(rng.integers(0, 1500)) if rng.random() < 0.5 else -int(rng.integers(1, 1500))
        wrong = data.copy()
        wrong[at] ^= int(rng.integers(1, 256))
        (tmp_path / "x.states").write_bytes(wrong)
        try:
            file = StatesFile(str(tmp_path / "x.states"), info)
            if len(file):
                file.at(slice(0, len(file))).to_float16()
                file.keys(np.arange(len(file)))
        except PhsError:
            refused += 1
    assert refused > 30


def test_states_of_another_model(tmp_path: Path, info: ModelInfo) -> None:
    other = write_states(tmp_path / "other.states", "f" * 64, KEYS, STATES)
    with pytest.raises(ModelMismatch, match=r"other\.states holds states of 'tiny' \(fingerprint ffffffffffff\)"):
        StatesFile(str(other), info)
    wide = write_states(tmp_path / "wide.states", info.fingerprint, KEYS, states(COUNT, hidden=64))
    with pytest.raises(StateError, match="hidden size 64, and those of the model 48"):
        StatesFile(str(wide), info)


@pytest.mark.parametrize("hidden", [64, 0, -1, 2**40])
def test_a_header_that_lies_about_the_columns(tmp_path: Path, info: ModelInfo, hidden: int) -> None:
    lie = write_states(tmp_path / "lie.states", info.fingerprint, KEYS, STATES)
    rewritten(lie, hidden)
    with pytest.raises(StateError, match="other columns"):
        StatesFile(str(lie), info)


def rewritten(path: Path, hidden: int) -> None:
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    text = table.schema.metadata[b"phs_states"].replace(b'"hidden_size": 48', b'"hidden_size": %d' % hidden)
    with (
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_file(sink, table.schema.with_metadata({b"phs_states": text})) as writer,
    ):
        writer.write_table(table.replace_schema_metadata({b"phs_states": text}))


def test_other_files(tmp_path: Path, info: ModelInfo) -> None:
    table = pa.table({"key": ["a"]})
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "t.txt").write_text("no file of states\n" * 100)
    for name, words in (("t.arrow", "is no file of states"), ("t.txt", "t.txt"), ("none.states", "No such file")):
        with pytest.raises(StateError, match=words):
            StatesFile(str(tmp_path / name), info)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(StateError, match="not a regular file"):
            StatesFile(str(place), info)


def test_nulls(tmp_path: Path, info: ModelInfo) -> None:
    good = write_states(tmp_path / "x.states", info.fingerprint, KEYS, STATES)
    batch = pa.ipc.open_file(pa.BufferReader(good.read_bytes())).get_batch(0)
    for column in range(3):
        columns = batch.columns
        columns[column] = pa.concat_arrays([columns[column][:-1], pa.nulls(1, columns[column].type)])
        wrong = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
        with pa.OSFile(str(good), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(wrong)
        with pytest.raises(StateError, match="holds nulls"):
            StatesFile(str(good), info)


def test_a_server_does_not_start_with_such_a_file(tiny_model: Path, tmp_path: Path) -> None:
    other = write_states(tmp_path / "other.states", "f" * 64, KEYS, STATES)
    server = ServerProcess(tiny_model, states=other)
    assert server.process.wait(90) != 0
    assert "other.states holds states of 'tiny'" in server.log and "Traceback" not in server.log
