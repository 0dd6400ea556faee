"""The state codec: exact bytes of both formats, mixed rows, and errors for everything that is no state."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from phs_milvus.contract import state
from phs_milvus.contract.errors import InvalidInput, StateError
from phs_milvus.contract.int8_states import MAX_SCALE, Int8States


def test_exact_bytes() -> None:
    packed = state.pack(np.array([[1.0, -2.0], [0.5, 65504.0]]))
    assert base64.b64decode(packed) == bytes.fromhex("003c 00c0 0038 ff7b")
    assert packed == "ADwAwAA4/3s="


@pytest.mark.parametrize("hidden", [1, 2, 3, 48, 64, 192, 768, 1024, 1536])
def test_round_trip(hidden: int) -> None:
    states = np.random.default_rng(hidden).standard_normal((5, 2, hidden)).astype(np.float16)
    packed = [state.pack(one) for one in states]
    assert {len(text) for text in packed} == {state.text_length(hidden)}
    found = state.unpack(packed, hidden)
    assert found.dtype == np.float16
    assert np.array_equal(found, states)


def test_no_rows() -> None:
    assert state.unpack([], 48).shape == (0, 2, 48)


@pytest.mark.parametrize(
    "wrong", [np.zeros((3, 4)), np.zeros(4), np.zeros((2, 0)), [[np.nan, 0], [0, 0]], [[1e6, 0], [0, 0]]]
)
def test_pack_refuses(wrong: object) -> None:
    with pytest.raises(StateError):
        state.pack(wrong)


@pytest.mark.parametrize("hidden", [4, 48])
def test_unpack_refuses(hidden: int) -> None:
    good = state.pack(np.zeros((2, hidden)))
    for wrong in (good[:-4], "", None, 7, "*" * len(good), "é" * len(good)):
        with pytest.raises(StateError, match="row 'wrong': "):
            state.unpack([good, wrong, good], hidden, ["good", "wrong", "good"])  # type: ignore[list-item]
    with pytest.raises(StateError, match="row 1: .*another model"):
        state.unpack([good, state.pack(np.zeros((2, hidden + 3)))], hidden)


def test_one_text_is_no_list_of_them() -> None:
    with pytest.raises(StateError, match="a list of packed states"):
        state.unpack(state.pack(np.zeros((2, 48))), 48)


def test_unpack_names_the_row_that_holds_nan() -> None:
    bad = np.zeros((2, 48), np.float16)
    bad[1, 7] = np.nan
    texts = [state.pack(np.zeros((2, 48))), base64.b64encode(bad.tobytes()).decode()]
    with pytest.raises(StateError, match="row 1: the state holds NaN"):
        state.unpack(texts, 48)


@pytest.mark.parametrize("hidden", [4, 5, 6, 48])
def test_rows_of_wrong_lengths_do_not_make_up_for_each_other(hidden: int) -> None:
    """Texts of equal length differ by up to two bytes in what they hold, by their padding."""
    good = state.pack(np.zeros((2, hidden)))
    bare = good.rstrip("=")
    texts = {bare + "A" * (len(good) - len(bare)), bare[: len(good) - 1].ljust(len(good) - 1, "A") + "="}
    texts |= {bare[: len(good) - 2].ljust(len(good) - 2, "A") + "=="}
    for wrong in texts - {good}:
        for other in texts - {good}:
            for rows in ([wrong, other], [good, wrong, other], [wrong, good, other], [good, wrong]):
                first = next(place for place, text in enumerate(rows) if text != good)
                with pytest.raises(StateError, match=f"row {first}: "):
                    state.unpack(rows, hidden)


# --- int8 -------------------------------------------------------------------------------------------------------------


def random_states(count: int, hidden: int) -> np.ndarray:
    """float16 [count, 2, hidden] of very different sizes, as residuals are."""
    rng = np.random.default_rng(hidden)
    spread = np.exp(2 * rng.standard_normal((count, 2, hidden)))
    return (spread * rng.standard_normal((count, 2, hidden))).astype(np.float16)


def test_exact_bytes_of_int8() -> None:
    """Scales of both vectors, then their numbers; 65 numbers have two scales."""
    numbers = np.zeros((2, 65))
    numbers[0, :3] = 127, -63.5, 0.3
    numbers[0, 64] = 254
    numbers[1, 1] = -31.75
    data = base64.b64decode(state.pack(numbers, "int8"))
    assert data[:8] == np.array([1, 2, 0.25, 0], "<f2").tobytes()
    values = np.frombuffer(data[8:], np.int8).reshape(2, 65)
    assert values[0, [0, 1, 2, 64]].tolist() == [127, -64, 0, 127] and values[1, :2].tolist() == [0, -127]
    found = state.unpack([state.pack(numbers, "int8")], 65)[0]
    assert found[0, [0, 1, 2, 64]].tolist() == [127, -64, 0, 254] and found[1, :2].tolist() == [0, -31.75]


@pytest.mark.parametrize("hidden", [4, 5, 48, 63, 64, 65, 128, 192, 240, 768, 1024])
def test_int8_is_within_half_a_step_of_each_block(hidden: int) -> None:
    states = random_states(7, hidden)
    packed = [state.pack(one, "int8") for one in states]
    assert {len(text) for text in packed} == {state.text_length(hidden, "int8")}
    stored = state.unpack_stored(packed, hidden)
    assert isinstance(stored, Int8States) and stored.scales.shape == (7, 2, -(-hidden // 64))
    found = state.unpack(packed, hidden)
    assert found.dtype == np.float16 and np.array_equal(found, stored.to_float16())
    for start in range(0, hidden, 64):
        block, ours = (array[..., start : start + 64].astype(np.float64) for array in (states, found))
        largest = np.abs(block).max(axis=-1, keepdims=True)
        # Half a step, and what rounding to float16 twice adds.
        assert (np.abs(block - ours) <= largest / 127 * 0.502 + np.abs(block) / 1024).all()


def test_the_smallest_and_largest_numbers_survive_int8() -> None:
    tiny, huge = np.full((2, 64), 2**-24), np.full((2, 64), -65504.0)
    assert np.array_equal(state.unpack([state.pack(tiny, "int8")], 64)[0], tiny)
    assert np.allclose(state.unpack([state.pack(huge, "int8")], 64)[0], huge, rtol=0.01)
    extreme = Int8States(np.full((1, 2, 64), -128, np.int8), np.full((1, 2, 1), MAX_SCALE, np.float16))
    assert (extreme.to_float16() == -65504).all()


def test_no_length_means_two_formats() -> None:
    for hidden in range(4, 30_000):
        assert state.text_length(hidden) != state.text_length(hidden, "int8"), hidden
        assert state.format_of("A" * state.text_length(hidden, "int8"), hidden) == "int8"
        assert state.format_of("A" * state.text_length(hidden), hidden) == "float16"
    for hidden in (1, 2, 3):
        with pytest.raises(InvalidInput, match="int8 is for hidden sizes from 4"):
            state.pack(np.zeros((2, hidden)), "int8")


@pytest.mark.parametrize("hidden", [5, 48, 192])
def test_rows_of_both_formats_are_read_side_by_side(hidden: int) -> None:
    states = random_states(6, hidden)
    packed = [state.pack(one, "int8" if row in (1, 4) else "float16") for row, one in enumerate(states)]
    found = state.unpack_stored(packed, hidden)
    assert isinstance(found, np.ndarray) and np.array_equal(found, state.unpack(packed, hidden))
    for row in range(6):
        assert np.array_equal(found[row], state.unpack([packed[row]], hidden)[0])
    assert np.array_equal(found[[0, 2, 3, 5]], states[[0, 2, 3, 5]]) and not np.array_equal(found[1], states[1])


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1, 512])
def test_a_row_with_a_scale_that_cannot_be_is_named(scale: float) -> None:
    good = state.pack(np.ones((2, 48)), "int8")
    data = bytearray(base64.b64decode(good))
    data[2:4] = np.array([scale], "<f2").tobytes()
    rows = [state.pack(np.ones((2, 48))), good, base64.b64encode(data).decode()]
    for texts in (rows, rows[1:]):
        with pytest.raises(StateError, match="row 'bad': the state holds a scale"):
            state.unpack(texts, 48, ["good", "other", "bad"][-len(texts) :])


def test_formats_and_arrays_that_there_are_not() -> None:
    with pytest.raises(InvalidInput, match="float16 or int8, got 'int4'"):
        state.pack(np.ones((2, 48)), "int4")  # type: ignore[arg-type]
    values, scales = np.ones((1, 2, 65), np.int8), np.ones((1, 2, 2), np.float16)
    for wrong in ((values[:, :1], scales), (values, scales[..., :1]), (values.astype(np.int16), scales)):
        with pytest.raises(StateError, match="int8|float16"):
            Int8States(*wrong)
