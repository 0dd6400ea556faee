"""Loading: what is refused and what the message says, fingerprints, and the self-check."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from phs_milvus.contract.errors import ModelError
from phs_server.model import checkpoint
from phs_server.model.backbone import FAMILIES
from tests.checkpoints import save_checkpoint


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_weights(directory: Path, edit: object) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    edit(weights)  # type: ignore[operator]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("model_id", ["facebook/dinov2-base", "/no/such/directory", "./nothing here", ""])
def test_a_model_that_is_nowhere(model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        checkpoint.load(model_id)
    assert f"'{model_id}'" in str(error.value)
    assert "no such directory" in str(error.value)
    assert "config.json, model.safetensors and preprocessor_config.json" in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_is_missing(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=name):
        checkpoint.load(str(copy))


def test_an_unsupported_family(tmp_path: Path) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="type 'bert'; supported are DINOv2"):
        checkpoint.load(str(tmp_path))


def test_missing_weights_are_not_served_at_random(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights.pop("layernorm.weight"))
    with pytest.raises(ModelError, match=r"lacks the weights layernorm\.weight"):
        checkpoint.load(str(copy))


def test_a_truncated_weights_file(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load"):
        checkpoint.load(str(copy))


@pytest.mark.parametrize("size", [50, 7, 13])
def test_image_size_must_be_a_multiple_of_the_patch(tiny_model: Path, size: int) -> None:
    with pytest.raises(ModelError, match=f"image size {size} is not a multiple of .* patch size 14; use"):
        checkpoint.load(str(tiny_model), image_size=size)


def test_image_size_comes_from_the_centre_crop(copy: Path) -> None:
    """As in facebook/dinov2-base, whose processor resizes to 256 and crops 224, and whose config says 518."""
    edit_json(
        copy / "preprocessor_config.json",
        size={"shortest_edge": 84},
        do_center_crop=True,
        crop_size={"height": 70, "width": 70},
    )
    assert checkpoint.load(str(copy)).preprocessing.image_size == 70


def test_fingerprint_follows_what_changes_embeddings(tiny_model: Path, copy: Path, tmp_path: Path) -> None:
    original = checkpoint.load(str(tiny_model)).fingerprint
    assert checkpoint.load(str(copy)).fingerprint == original
    assert checkpoint.load(str(tiny_model), image_size=84).fingerprint != original
    other = save_checkpoint("dinov2", tmp_path / "other", seed=1)
    assert checkpoint.load(str(other)).fingerprint != original
    edit_json(copy / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert checkpoint.load(str(copy)).fingerprint != original


def test_fingerprint_does_not_depend_on_parameter_names() -> None:
    """transformers renames attributes between releases while checkpoints stay."""
    preprocessing = checkpoint.Preprocessing(56, 14, 3, (0.5,) * 3, (0.5,) * 3)

    class One(torch.nn.Module):
        config = transformers.Dinov2Config()

        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            self.register_parameter(first, torch.nn.Parameter(torch.ones(3)))
            self.register_parameter(second, torch.nn.Parameter(torch.zeros(2, 2)))

    fingerprints = {
        checkpoint._fingerprint(One(*names), "dinov2", preprocessing) for names in (("a", "b"), ("query", "attention"))
    }
    assert len(fingerprints) == 1


def test_self_check_refuses_a_readout_that_is_not_the_models(tiny_model: Path) -> None:
    loaded = checkpoint.load(str(tiny_model))
    model = transformers.Dinov2Model.from_pretrained(tiny_model).eval()
    patch_mean = replace(FAMILIES["dinov2"], embed=lambda model, x: model(x).last_hidden_state[:, 1:].mean(dim=1))
    with pytest.raises(ModelError, match=r"self-check failed: .* refusing to serve"):
        pixels = loaded.preprocessing.normalised(loaded.sample)
        checkpoint._cut_and_check(model, patch_mean, pixels, pixels)


def test_a_model_without_finite_output_is_refused(copy: Path) -> None:
    edit_weights(copy, lambda weights: weights["layernorm.weight"].fill_(float("nan")))
    with pytest.raises(ModelError, match="self-check failed"):
        checkpoint.load(str(copy))
