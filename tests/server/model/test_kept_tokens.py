"""Prompts for tokens that were kept: as exact as encoding the picture again, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phs_milvus.contract.location import LocateTarget
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.engine import FocusEngine, compact
from tests import naive_phs
from tests.checkpoints import FAMILIES, save_checkpoint


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def batch(engine: FocusEngine, count: int = 3) -> tuple[np.ndarray, PromptBatch[np.ndarray]]:
    rng = np.random.default_rng(0)
    pixels, prompts = engine.sample_batch(count)
    masks = rng.random(prompts.masks.shape, np.float32)
    shift = np.linspace(0, 1, count, dtype=np.float32)
    return rng.integers(0, 256, pixels.shape, np.uint8), PromptBatch(masks, np.full(count, 2), shift)


def test_a_prompt_for_kept_tokens_gives_what_encoding_gives(family: Path) -> None:
    engine = FocusEngine(checkpoint.load(str(family)), "cpu", "float32")
    pixels, prompts = batch(engine)
    plain = PromptBatch(np.zeros_like(prompts.masks), np.full(3, engine.backbone.heads))
    first, tokens = engine.encode_and_keep(pixels, plain)
    assert np.array_equal(first.embedding, engine.encode(pixels, plain).embedding)
    tokens = [compact(each) for each in tokens]
    assert all(each.dtype == torch.float16 for each in tokens)
    again, expected = engine.encode_kept(tokens, prompts), engine.encode(pixels, prompts)
    for name in ("embedding", "state"):
        ours, theirs = (getattr(one, name).reshape(3, -1).astype(np.float64) for one in (again, expected))
        cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert cosines.min() > 0.99999, name
    assert np.abs(again.head_scores - expected.head_scores).max() < 1e-3
    assert np.array_equal(again.head_weights, expected.head_weights)
    assert np.abs(again.attention - expected.attention).max() < 1e-3


def test_kept_tokens_of_a_half_precision_model_are_kept_as_they_are(tmp_path: Path) -> None:
    engine = FocusEngine(checkpoint.load(str(save_checkpoint("dinov2", tmp_path))), "cpu", "bfloat16")
    pixels, prompts = batch(engine)
    first, tokens = engine.encode_and_keep(pixels, prompts)
    tokens = [compact(each) for each in tokens]
    assert all(each.dtype == torch.bfloat16 for each in tokens)
    assert np.abs(engine.encode_kept(tokens, prompts).embedding - first.embedding).max() < 1e-6


def test_numbers_too_large_for_float16_are_kept_in_full() -> None:
    assert compact(torch.tensor([1.5, 70_000.0])).dtype == torch.float32
    assert compact(torch.tensor([1.5, 60_000.0])).dtype == torch.float16


@torch.no_grad()
def test_patch_tokens_are_the_models_last_hidden_state(family: Path) -> None:
    loaded = checkpoint.load(str(family))
    side = loaded.preprocessing.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    original = naive_phs.load_original(family)
    theirs = naive_phs.final_patches(original, pixels, loaded.backbone.last.prefix_tokens)
    ours = loaded.backbone.patch_tokens(loaded.backbone.tokens(pixels))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-4 * max(1.0, float(theirs.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is at hand")
@pytest.mark.parametrize("gpu_mode", ["graphs", "eager"])
def test_kept_on_a_gpu_they_give_what_the_cpu_gives(family: Path, gpu_mode: str) -> None:
    """Two batches, so that a graph's next replay would overwrite what was not copied."""
    cpu = FocusEngine(checkpoint.load(str(family)), "cpu", "float32")
    gpu = FocusEngine(checkpoint.load(str(family)), "cuda:0", "float32", gpu_mode)
    gpu.warm_up(4)
    pixels, prompts = batch(gpu)
    plain = PromptBatch(np.zeros_like(prompts.masks), np.full(3, gpu.backbone.heads))
    _, tokens = gpu.encode_and_keep(pixels, plain)
    gpu.encode(pixels[::-1].copy(), plain)
    tokens = [compact(each) for each in tokens]
    assert all(each.is_cuda and each.dtype == torch.float16 for each in tokens)
    found, expected = gpu.encode_kept(tokens, prompts), cpu.encode(pixels, prompts)
    assert (found.embedding * expected.embedding).sum(axis=1).min() > 0.9999
    (feature,) = gpu.region_features(tokens[0], prompts.masks[:1])
    _, on_cpu = cpu.encode_and_keep(pixels, plain)
    (same,) = cpu.region_features(on_cpu[0], prompts.masks[:1])
    assert feature @ same > 0.999
    target = LocateTarget(expected.embedding[0], expected.head_weights[0], same)
    ours, theirs = gpu.locate(tokens, target), cpu.locate(on_cpu, target)
    assert np.abs(ours.score - theirs.score).max() < 5e-3 and np.abs(ours.extent - theirs.extent).max() < 2e-2
