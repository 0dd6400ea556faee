"""Faster kernels change nothing, whichever are chosen, and the choice is the machine's or the user's."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from phs_server.config import Settings
from phs_server.model import checkpoint, kernels, trials
from phs_server.model.checkpoint import Checkpoint
from phs_server.model.engine import FocusEngine
from tests.checkpoints import FAMILIES, save_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice of earlier tests is known., and other programs that run do not matter."""
    monkeypatch.setattr(trials, "_STEADY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def kinds(loaded: Checkpoint) -> set[str]:
    """How the linear layers of a model are computed."""
    found = {type(module).__name__ for module in loaded.backbone.model.modules()}
    return found & {"Linear", "OneDnnLinear", "ThenGelu"}


def pixels(loaded: Checkpoint) -> torch.Tensor:
    side = loaded.preprocessing.image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("choice", ["torch", "onednn", "onednn-gelu"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_cpu_kernels_change_nothing_in_float32(
    family: str, choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = checkpoint.load(str(save_checkpoint(family, tmp_path)))
    batch, weights = pixels(loaded), torch.ones(1, loaded.backbone.heads)
    expected = loaded.backbone(batch)
    embedding = loaded.backbone.readout(expected.residual, expected.head_outputs, weights)

    def chosen(self: object, what: str, ways: dict[str, object], inputs: object) -> str:
        return choice if choice in ways else "onednn"

    monkeypatch.setattr(kernels.Trials, "fastest", chosen)
    monkeypatch.setattr(kernels, "_fastest_attention", lambda *_: "sdpa")
    kernels.speed_up(loaded.backbone, 17)
    actual = loaded.backbone(batch)
    again = loaded.backbone.readout(actual.residual, actual.head_outputs, weights)
    assert kinds(loaded) >= ({"Linear"} if choice == "torch" else {"OneDnnLinear"})
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))
    assert (again - embedding).abs().max() < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_plain_attention_is_sdpa(family: str, tmp_path: Path) -> None:
    """In float32, where both are exact."""
    loaded = checkpoint.load(str(save_checkpoint(family, tmp_path)))
    batch = pixels(loaded)
    expected = loaded.backbone(batch)
    assert kernels.use_plain_attention(loaded.backbone.model) > 0
    actual = loaded.backbone(batch)
    assert (actual.head_outputs - expected.head_outputs).abs().max() < 1e-4 * float(expected.head_outputs.abs().max())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_shape_is_tried_once_and_said_in_one_line(
    tiny_model: Path, precision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=kernels.__name__)
    for _ in range(2):
        FocusEngine(checkpoint.load(str(tiny_model)), "cpu", precision).warm_up(2)
    first, second = (record.getMessage() for record in caplog.records)
    for what in ("linear 48 > 48 ", "linear 48 > 96 + GELU ", "linear 96 > 48 ", "attention 4 x 17 x 12 "):
        assert what in first
    assert "tried for" in first and "tried for" not in second
    assert first.startswith(second)


def test_the_kernels_are_those_that_were_asked_for(tiny_model: Path) -> None:
    for choice, expected in {"torch": {"Linear"}, "onednn": {"OneDnnLinear"}}.items():
        loaded = checkpoint.load(str(tiny_model))
        FocusEngine(loaded, "cpu", "float32", cpu_kernels=choice).warm_up(2)
        assert kinds(loaded) == expected
    assert tuple(Settings.__dataclass_fields__["cpu_kernels"].metadata["choices"]) == kernels.KERNELS


def test_without_onednn_the_layers_stay(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    loaded = checkpoint.load(str(tiny_model))
    FocusEngine(loaded, "cpu", "float32").warm_up(2)
    assert kinds(loaded) == {"Linear"}
