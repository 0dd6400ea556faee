"""What is kept between starts is used again, and never in the way: broken, foreign and unwritable files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from phs_server.model import checkpoint, trials
from phs_server.model.cache import Cache, cache_folder
from phs_server.model.trials import Trials


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder that only this test has; and trials count, whatever else the machine does."""
    monkeypatch.setattr(trials, "_STEADY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phs-milvus"


def test_what_is_put_is_there_for_the_next_process(home: Path) -> None:
    assert Cache("some").get("a") is None
    Cache("some").put("a", {"b": [1.5, None]})
    assert Cache("some").get("a") == {"b": [1.5, None]}
    assert Cache("other").get("a") is None
    assert [path.name for path in home.iterdir()] == ["some.json"]


def test_the_oldest_entries_go(home: Path) -> None:
    for index in range(105):
        Cache("some").put(str(index), index)
    Cache("some").put("5", "again")
    Cache("some").put("new", 1)
    kept = json.loads((home / "some.json").read_text())
    assert len(kept) == 100 and "5" in kept and "6" not in kept


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 1}', b'{"a": {"value": 2}}', b"[" * 10**5])
def test_a_broken_file_is_an_empty_cache(home: Path, content: bytes) -> None:
    home.mkdir(parents=True)
    (home / "some.json").write_bytes(content)
    assert Cache("some").get("a") is None
    Cache("some").put("a", 3)
    assert Cache("some").get("a") == 3


def test_an_edited_value_counts_as_missing(home: Path) -> None:
    Cache("some").put("a", 3)
    (home / "some.json").write_text((home / "some.json").read_text().replace("3", "4", 1))
    assert Cache("some").get("a") is None


@pytest.mark.parametrize("kind", ["a file in place of the folder", "a folder in place of the file", "a FIFO"])
def test_a_cache_that_cannot_be_written_is_no_error(home: Path, kind: str) -> None:
    if kind.startswith("a file"):
        home.parent.mkdir()
        home.write_text("")
    elif kind == "a FIFO":
        home.mkdir(parents=True)
        os.mkfifo(home / "some.json")
    else:
        (home / "some.json" / "x").mkdir(parents=True)
    Cache("some").put("a", 3)
    assert Cache("some").get("a") in (None, 3)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(Path, "home", nowhere)
    assert cache_folder() is None
    Cache("some").put("a", 3)
    assert Cache("some").get("a") is None


def double(x: torch.Tensor) -> torch.Tensor:
    return x + x


def slow(x: torch.Tensor) -> torch.Tensor:
    return sum((x * 2 for _ in range(30)), torch.zeros(())) / 30


def absent() -> object:
    raise AttributeError("not in this torch")


def test_the_fastest_way_that_agrees_is_found_once_per_machine() -> None:
    inputs = (torch.randn(16, 4096),)
    made: list[str] = []

    def way(name: str, function: object) -> object:
        return lambda: made.append(name) or function

    ways = {
        "slow": way("slow", slow),
        "wrong": way("wrong", lambda x: x),
        "absent": absent,
        "double": way("double", double),
    }
    assert Trials(torch.float32).fastest("twice", ways, lambda: inputs) == "double"
    assert made == ["slow", "wrong", "double"]
    again = Trials(torch.float32)
    assert again.fastest("twice", ways, lambda: inputs) == "double"
    assert len(made) == 3 and again.seconds == 0 and again.found == {"twice": "double"}
    # Known, but not among what there is now.
    del ways["double"]
    assert Trials(torch.float32).fastest("twice", ways, lambda: inputs) == "slow"


@pytest.mark.parametrize(("seconds", "steady"), [(0, 0), (1, 2)])
def test_a_trial_that_was_short_or_disturbed_is_not_remembered(
    home: Path, seconds: float, steady: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "_STEADY", steady)
    ways = {"slow": lambda: slow, "double": lambda: double}
    assert Trials(torch.float32, seconds).fastest("twice", ways, lambda: (torch.randn(64, 4096),)) in ways
    assert not home.exists()


def test_a_passed_self_check_is_not_run_again(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = checkpoint.load(str(tiny_model))

    def ran(*_: object) -> None:
        raise AssertionError("ran again")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_cut_and_check", ran)
        again = checkpoint.load(str(tiny_model))
        with pytest.raises(AssertionError, match="ran again"):
            checkpoint.load(str(tiny_model), image_size=84)
    assert np.array_equal(again.sample_embedding, first.sample_embedding)


@pytest.mark.parametrize("name", ["rope_theta", "layer_norm_eps", "some_new_setting"])
def test_another_configuration_is_checked_anew(
    tiny_model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    checkpoint.load(str(copy))
    config = json.loads((copy / "config.json").read_text()) | {name: 0.5}
    (copy / "config.json").write_text(json.dumps(config))
    checks = []
    check = checkpoint._cut_and_check
    monkeypatch.setattr(checkpoint, "_cut_and_check", lambda *args: checks.append(1) or check(*args))
    checkpoint.load(str(copy))
    assert checks == [1]


@pytest.mark.parametrize("value", [None, 7, "", "????", "AAAA", "AACAPwAAgD8="])
def test_a_remembered_embedding_that_is_none_is_not_used(
    tiny_model: Path, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = checkpoint.load(str(tiny_model)).sample_embedding
    monkeypatch.setattr(Cache, "get", lambda *_: value)
    assert np.array_equal(checkpoint.load(str(tiny_model)).sample_embedding, expected)
