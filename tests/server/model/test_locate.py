"""The maps of locating against their definitions, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phs_milvus.contract.location import LocateTarget
from phs_server.model import checkpoint
from phs_server.model.engine import FocusEngine
from phs_server.model.head_selection import shifted_attention
from phs_server.model.locate import Locator, smoothed, standard, weighted
from tests.checkpoints import FAMILIES, save_checkpoint

BEST = 5


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> checkpoint.Checkpoint:
    return checkpoint.load(str(save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))))


def scene(loaded: checkpoint.Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(tokens of two images, head weights, an embedding)."""
    side, heads = loaded.preprocessing.image_size, loaded.backbone.heads
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = loaded.backbone.tokens(pixels)
    weights = torch.zeros(heads)
    weights[[0, heads - 1]] = heads / 2
    other = loaded.backbone(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(2)))
    embedding = loaded.backbone.readout(other.residual, other.head_outputs, weights[None])[0]
    return tokens, weights, embedding


@torch.no_grad()
def test_patch_readout_is_the_embedding_of_looking_at_one_patch(loaded: checkpoint.Checkpoint) -> None:
    backbone = loaded.backbone
    tokens, weights, embedding = scene(loaded)
    last = backbone.attend(tokens)
    found = Locator(backbone).patch_readout(last, backbone.last.values(tokens), weights, embedding)
    for patch in (0, 5):
        mask = torch.zeros(2, found.shape[1])
        mask[:, patch] = 1
        outputs = backbone.last.pool_patches(shifted_attention(last.attention, mask, torch.ones(2)), tokens)
        expected = backbone.readout(last.residual, outputs, weights[None]) @ embedding
        assert (found[:, patch] - expected).abs().max() < 1e-5


@torch.no_grad()
def test_evidence_is_what_the_score_loses_without_a_little_of_a_patch(loaded: checkpoint.Checkpoint) -> None:
    backbone = loaded.backbone
    tokens, weights, embedding = (part.double() if part.dtype.is_floating_point else part for part in scene(loaded))
    locator = Locator(backbone)
    last, values = backbone.attend(tokens.float()), backbone.last.values(tokens.float())
    found = locator.patch_evidence(last, values, weights.float(), embedding.float())
    step, patch = 1e-2, 3
    by_head = values[:, patch].unflatten(-1, (backbone.heads, -1))
    change = step * (last.attention[:, :, patch, None] * by_head).flatten(1)
    above, below = (
        backbone.readout(last.residual, last.head_outputs + sign * change, weights.float()[None]) @ embedding.float()
        for sign in (1, -1)
    )
    assert torch.allclose(found[:, patch], (above - below) / (2 * step), rtol=0.1, atol=2e-5)


@torch.no_grad()
def test_region_match_is_the_cosine_of_final_patches(loaded: checkpoint.Checkpoint) -> None:
    tokens, _, _ = scene(loaded)
    locator = Locator(loaded.backbone)
    patches = loaded.backbone.patch_tokens(tokens)
    masks = torch.zeros(1, patches.shape[1])
    masks[0, :2] = torch.tensor([1.0, 0.5])
    (feature,) = locator.region_features(tokens[:1], masks)
    mean = patches[0, 0] + 0.5 * patches[0, 1]
    assert (feature - mean / mean.norm()).abs().max() < 1e-5
    expected = torch.nn.functional.cosine_similarity(patches, feature[None, None], dim=-1)
    assert (locator.region_match(tokens, feature) - expected).abs().max() < 1e-5


def test_the_engine_finds_a_picture_in_itself(tmp_path: Path) -> None:
    engine = FocusEngine(checkpoint.load(str(save_checkpoint("dinov2", tmp_path))), "cpu", "float32")
    rng = np.random.default_rng(0)
    pixels, prompts = engine.sample_batch(3)
    _, tokens = engine.encode_and_keep(rng.integers(0, 256, pixels.shape, np.uint8), prompts)
    masks = np.zeros_like(prompts.masks[:1])
    masks[0, 6] = 1
    (feature,) = engine.region_features(tokens[0], masks)
    encoded = engine.encode_kept(tokens[:1], type(prompts)(masks, np.array([2]), np.array([1.0], np.float32)))
    target = LocateTarget(encoded.embedding[0], encoded.head_weights[0], feature)
    located = engine.locate(tokens, target)
    assert located.evidence.shape == located.extent.shape == (3, masks.shape[1])
    assert np.allclose(located.evidence.mean(axis=1), 0, atol=1e-5) and np.allclose(located.evidence.std(axis=1), 1)
    # Its own patch is the best of its picture, and its picture the best of the three.
    assert located.extent[0].argmax() == 6
    assert located.extent[0, 6] > 0.999
    assert located.score.argmax() == 0 and located.match.argmax() == 0
    alone = engine.locate(tokens[1:2], target)
    assert np.abs(alone.evidence[0] - located.evidence[1]).max() < 1e-4
    without = engine.locate(tokens, LocateTarget(encoded.embedding[0], encoded.head_weights[0]))
    assert (without.match == 0).all() and np.isfinite(without.evidence).all()


def test_smoothing_is_the_binomial_mean_of_neighbours() -> None:
    one = torch.zeros(1, 16)
    one[0, 5] = 16.0
    expected = torch.tensor([[1.0, 2, 1, 0], [2, 4, 2, 0], [1, 2, 1, 0], [0, 0, 0, 0]])
    assert torch.allclose(smoothed(one).view(4, 4), expected)
    assert torch.allclose(smoothed(torch.full((2, 9), 0.7)), torch.full((2, 9), 0.7))


def test_maps_are_combined_by_their_z_scores() -> None:
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=(2, 30)) * scale).float() for scale in (1, 9))
    combined = weighted(first, second, 2.0)
    assert torch.allclose(standard(combined), standard(2 * standard(first) + standard(second)), atol=1e-5)
    assert not standard(torch.full((1, 4), 0.3)).any()
