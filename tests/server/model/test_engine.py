"""The engine: precisions, halving on out-of-memory, reranking in groups, devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phs_milvus.contract.errors import InvalidInput, ModelError
from phs_milvus.contract.types import RerankInputs
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine, batch_buckets
from tests.checkpoints import FAMILIES, save_checkpoint

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; none is at hand")


def images(engine: FocusEngine, count: int, seed: int = 0) -> tuple[np.ndarray, PromptBatch[np.ndarray]]:
    """Arguments of encode: noise images with random masks; every other one without a prompt."""
    rng = np.random.default_rng(seed)
    pixels, prompts = engine.sample_batch(count)
    pixels = rng.integers(0, 256, pixels.shape, np.uint8)
    prompts.masks[::2] = rng.random(prompts.masks[::2].shape)
    prompts.head_counts[::2] = 2
    return pixels, prompts


def make(directory: Path, device: str = "cpu", precision: str = "float32", **extra: str) -> FocusEngine:
    return FocusEngine(checkpoint.load(str(directory)), device, precision, **extra)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest over the rows."""
    a, b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_served_in_bfloat16(family: str, tmp_path: Path) -> None:
    make(save_checkpoint(family, tmp_path), precision="bfloat16").warm_up(2)  # raises unless the self-check passes


def test_bfloat16_agrees_with_float32_on_a_real_model(deit: Path) -> None:
    exact = make(deit)
    batch = images(exact, 4)
    expected, actual = exact.encode(*batch), make(deit, precision="bfloat16").encode(*batch)
    assert cosine(actual.embedding[1::2], expected.embedding[1::2]) > 0.999
    assert cosine(actual.state, expected.state) > 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_engine_that_computes_something_else_is_not_served(deit: Path, precision: str) -> None:
    engine = make(deit, precision=precision)
    engine.warm_up(2)
    engine._gain *= 1.5
    with pytest.raises(ModelError, match=f"self-check failed: in {precision} on cpu"):
        engine.warm_up(2)


class OutOfMemoryAbove(torch.nn.Module):
    """A backbone whose device holds `limit` images."""

    def __init__(self, backbone: torch.nn.Module, limit: int) -> None:
        super().__init__()
        self.inner, self.readout, self.heads, self.limit = backbone, backbone.readout, backbone.heads, limit
        self.sizes: list[int] = []

    def tokens(self, pixels: torch.Tensor, fovea: object) -> object:
        self.sizes.append(len(pixels))
        if len(pixels) > self.limit:
            raise torch.OutOfMemoryError("full")
        return self.inner.tokens(pixels, fovea)

    def attend(self, tokens: torch.Tensor, prompts: object) -> object:
        return self.inner.attend(tokens, prompts)


def test_batches_are_halved_on_out_of_memory_and_stay_small(tiny_model: Path) -> None:
    engine = make(tiny_model)
    batch = images(engine, 7)
    expected = engine.encode(*batch)
    engine.backbone = small = OutOfMemoryAbove(engine.backbone, 2)
    actual = engine.encode(*batch)
    assert small.sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert np.abs(actual.embedding - expected.embedding).max() < 1e-5
    assert np.array_equal(actual.head_weights, expected.head_weights)
    small.sizes.clear()
    engine.encode(*images(engine, 2))
    assert small.sizes == [1, 1]


def test_an_image_that_never_fits_is_an_error(tiny_model: Path) -> None:
    engine = make(tiny_model)
    engine.backbone = OutOfMemoryAbove(engine.backbone, 0)
    with pytest.raises(torch.OutOfMemoryError):
        engine.encode(*images(engine, 2))


def test_rerank_is_the_readout_of_each_pair_whatever_is_shared(tiny_model: Path, monkeypatch) -> None:
    engine = make(tiny_model)
    encoded = engine.encode(*images(engine, 9))
    weights = encoded.head_weights[[0, 1, 1, 4, 0]]
    queries = np.random.default_rng(1).standard_normal((5, encoded.embedding.shape[1])).astype(np.float32)
    expected = np.empty((5, 9), np.float32)
    for row, (query, weight) in enumerate(zip(queries, weights, strict=True)):
        for column, state in enumerate(torch.from_numpy(encoded.state)):
            with torch.inference_mode():
                candidate = engine.backbone.readout(state[:1], state[1:], torch.from_numpy(weight[None]))
            expected[row, column] = candidate[0].numpy() @ query / np.linalg.norm(query)
    assert np.abs(engine.rerank(RerankInputs(queries, weights, encoded.state)) - expected).max() < 1e-5
    # Several chunks and several blocks of weights, the last ones smaller.
    monkeypatch.setattr("phs_server.model.reranking._ROWS", 6)
    monkeypatch.setattr("phs_server.model.reranking._WEIGHTS", 2)
    assert np.abs(engine.rerank(RerankInputs(queries, weights, encoded.state)) - expected).max() < 1e-5


def rerank_inputs(engine: FocusEngine, weights: np.ndarray, states: int) -> RerankInputs:
    """Noise, for so many head weights [Q, H]."""
    rng = np.random.default_rng(0)
    width = engine.backbone.hidden_size
    embeddings = rng.standard_normal((len(weights), width)).astype(np.float32)
    return RerankInputs(embeddings, weights, rng.standard_normal((states, 2, width)).astype(np.float16))


def test_a_rerank_asks_between_chunks_whether_to_go_on(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all of its work is one readout and many cosines."""
    monkeypatch.setattr("phs_server.model.reranking._ROWS", 64)
    monkeypatch.setattr("phs_server.model.reranking._PRODUCTS", 2**12)
    engine = make(tiny_model)
    rng = np.random.default_rng(0)
    for weights, states in ((rng.random((40, 4), np.float32), 200), (np.ones((1000, 4), np.float32), 64)):
        asked = 0

        def check() -> None:
            nonlocal asked
            asked += 1
            if asked == 5:
                raise TimeoutError("enough")

        with pytest.raises(TimeoutError, match="enough"):
            engine.rerank(rerank_inputs(engine, weights, states), check)
        assert asked == 5


def test_chunks_of_a_rerank_take_about_as_long_as_wanted(tiny_model: Path) -> None:
    engine = make(tiny_model)
    engine._states._rows = 1024
    engine._states._pace(1024, seconds=0.4)
    assert engine._states._rows == 256
    engine._states._pace(100, seconds=0.001)  # a small rest says nothing
    assert engine._states._rows == 256
    for _ in range(9):
        engine._states._pace(engine._states._rows, seconds=0)
    assert engine._states._rows == 2048


def test_more_readouts_than_one_request_may_ask_for_are_refused(tiny_model: Path) -> None:
    engine = make(tiny_model)
    weights = np.random.default_rng(0).random((400, 4), np.float32)
    with pytest.raises(InvalidInput, match="400 distinct head weights for 251 states make 100400 readouts") as error:
        engine.rerank(rerank_inputs(engine, weights, 251))
    assert error.value.field == "head_weights"
    weights[:] = weights[0]  # one readout of each state serves all queries
    assert engine.rerank(rerank_inputs(engine, weights, 251)).shape == (400, 251)


def test_threads_do_not_see_one_anothers_fovea(deit: Path) -> None:
    engine = make(deit)
    pixels, plain = images(engine, 1)
    rng = np.random.default_rng(2)
    foveas = [8 * rng.random(plain.masks.shape, np.float32) if index % 3 else None for index in range(12)]
    prompts = [replace(plain, fovea=fovea) for fovea in foveas]
    expected = [engine.encode(pixels, each).embedding for each in prompts]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 < np.abs(expected[1] - expected[2]).max()
    with ThreadPoolExecutor(2) as pool:
        actual = list(pool.map(lambda each: engine.encode(pixels, each).embedding, prompts))
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5


def test_batch_buckets_cover_every_size_with_little_padding() -> None:
    assert batch_buckets(16) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert batch_buckets(20)[-2:] == [16, 20]
    for size in range(1, 65):
        assert min(bucket for bucket in batch_buckets(64) if bucket >= size) <= 1.5 * size


def test_devices_are_named_checked_and_distinct() -> None:
    assert resolve_devices("cpu") == ["cpu"]
    for wrong, message in (("cpu,cpu", "twice"), ("gpu9", "gpu9"), ("", "''")):
        with pytest.raises(ModelError, match=message):
            resolve_devices(wrong)


@needs_cuda
@pytest.mark.parametrize("gpu_mode", ["graphs", "eager"])
def test_gpu_gives_what_the_cpu_gives(tiny_model: Path, gpu_mode: str) -> None:
    cpu, gpu = make(tiny_model), make(tiny_model, "cuda:0", gpu_mode=gpu_mode)
    gpu.warm_up(8)
    for count in (1, 5, 8, 3):
        batch = images(cpu, count, seed=count)
        assert cosine(gpu.encode(*batch).embedding, cpu.encode(*batch).embedding) > 0.9999
    encoded = cpu.encode(*batch)
    pair = [
        engine.rerank(RerankInputs(encoded.embedding, encoded.head_weights, encoded.state)) for engine in (cpu, gpu)
    ]
    assert np.abs(pair[0] - pair[1]).max() < 1e-3


@needs_cuda
def test_two_threads_share_one_gpu(tiny_model: Path) -> None:
    engine = make(tiny_model, "cuda:0")
    engine.warm_up(8)
    batches = [images(engine, 1 + seed % 8, seed) for seed in range(64)]
    expected = [engine.encode(*batch).embedding for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        actual = list(pool.map(lambda batch: engine.encode(*batch).embedding, batches))
    for ours, theirs in zip(actual, expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5
