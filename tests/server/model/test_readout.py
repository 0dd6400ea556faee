"""The cut model is the model: exactness for every family against transformers' own forward and hooks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from phs_server.model import checkpoint
from tests import naive_phs
from tests.checkpoints import FAMILIES, save_checkpoint

TOLERANCE = 1e-5
# [CLS], registers and DeiT's distillation token, for the families that have a [CLS] token.
PREFIX_TOKENS = {name: 1 for name in FAMILIES if "siglip" not in name}
PREFIX_TOKENS |= {"deit": 2, "dinov2-registers": 5, "dinov3": 5, "dinov3-gated": 5}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def pixels(side: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def some_weights(heads: int) -> torch.Tensor:
    weights = torch.zeros(heads)
    weights[[0, heads - 1]] = heads / 2
    return weights


@torch.no_grad()
def test_readout_with_ones_is_the_models_own_embedding(family: tuple[str, Path]) -> None:
    loaded = checkpoint.load(str(family[1]))
    batch = pixels(loaded.preprocessing.image_size)
    last = loaded.backbone(batch)
    ours = loaded.backbone.readout(last.residual, last.head_outputs, torch.ones(1, loaded.backbone.heads))
    theirs = naive_phs.embedding(naive_phs.load_original(family[1]), batch)
    assert (ours - theirs).abs().max() < TOLERANCE
    # The checkpoints are not degenerate: different images have different embeddings.
    assert (theirs[0] - theirs[1]).abs().max() > 0.01


@torch.no_grad()
def test_readout_with_weights_is_scaling_heads_inside_the_model(family: tuple[str, Path]) -> None:
    loaded = checkpoint.load(str(family[1]))
    batch = pixels(loaded.preprocessing.image_size)
    weights = some_weights(loaded.backbone.heads)
    last = loaded.backbone(batch)
    ours = loaded.backbone.readout(last.residual, last.head_outputs, weights.unsqueeze(0))
    original = naive_phs.load_original(family[1])
    plain = naive_phs.embedding(original, batch)
    with naive_phs.head_weights(original, weights):
        theirs = naive_phs.embedding(original, batch)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert (theirs - plain).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(PREFIX_TOKENS))
def test_attention_is_the_models_own_over_patches_only(name: str, tmp_path: Path) -> None:
    directory = save_checkpoint(name, tmp_path)
    loaded = checkpoint.load(str(directory))
    batch = pixels(loaded.preprocessing.image_size)
    original = naive_phs.load_original(directory)
    theirs = naive_phs.last_attention(getattr(original, "vision_model", original), batch, PREFIX_TOKENS[name])
    ours = loaded.backbone(batch).attention
    assert ours.shape == (3, 4, loaded.preprocessing.grid**2)
    assert (ours - theirs).abs().max() < TOLERANCE
    assert (ours.sum(dim=-1) < 1).all()


@torch.no_grad()
def test_siglip_attention_is_the_pooling_heads(tmp_path: Path) -> None:
    directory = save_checkpoint("siglip-vision", tmp_path)
    batch = pixels(64)
    original = naive_phs.load_original(directory)
    tokens = original(batch).last_hidden_state
    probe = original.head.probe.repeat(len(batch), 1, 1)
    _, theirs = original.head.attention(probe, tokens, tokens, average_attn_weights=False)
    ours = checkpoint.load(str(directory)).backbone(batch)
    assert (ours.attention - theirs[:, :, 0]).abs().max() < TOLERANCE
    assert not ours.residual.any()


@torch.no_grad()
@pytest.mark.parametrize("family", ["deit", "dinov2", "dinov2-registers", "dinov3", "vit", "clip-full", "siglip-full"])
def test_other_grid_sizes_interpolate_positions(family: str, tmp_path: Path) -> None:
    directory = save_checkpoint(family, tmp_path)
    patch = checkpoint.load(str(directory)).preprocessing.patch_size
    loaded = checkpoint.load(str(directory), image_size=6 * patch)
    assert loaded.preprocessing.grid == 6
    batch = pixels(6 * patch)
    last = loaded.backbone(batch)
    ours = loaded.backbone.readout(last.residual, last.head_outputs, torch.ones(1, 4))
    told = {} if family.startswith("dino") else {"interpolate_pos_encoding": True}
    theirs = naive_phs.embedding(naive_phs.load_original(directory), batch, **told)
    assert last.attention.shape[-1] == 36
    assert (ours - theirs).abs().max() < TOLERANCE


@torch.no_grad()
def test_deit_with_heads_scaled(deit: Path) -> None:
    loaded = checkpoint.load(str(deit))
    batch = pixels(224)
    last = loaded.backbone(batch)
    original = naive_phs.load_original(deit)
    for weights in (torch.ones(3), torch.tensor([0.0, 3.0, 0.0]), torch.tensor([1.5, 0.0, 1.5])):
        ours = loaded.backbone.readout(last.residual, last.head_outputs, weights.unsqueeze(0))
        with naive_phs.head_weights(original, weights):
            theirs = naive_phs.embedding(original, batch)
        assert (ours - theirs).abs().max() < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_float16_states_read_out_like_float32(family: tuple[str, Path], precision: torch.dtype) -> None:
    backbone = checkpoint.load(str(family[1])).backbone
    weights = some_weights(backbone.heads).unsqueeze(0)
    last = backbone(pixels(64 if backbone.model.config.patch_size == 16 else 56))
    exact = backbone.readout(last.residual, last.head_outputs, weights)
    backbone.readout.set_precision(precision)
    stored = backbone.readout(last.residual.half(), last.head_outputs.half(), weights)
    assert (exact * stored).sum(dim=-1).min() > 0.9999
