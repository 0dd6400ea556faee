"""The state codec: exact bytes, and errors for everything that is no state."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from phs_milvus.contract import state
from phs_milvus.contract.errors import StateError


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
