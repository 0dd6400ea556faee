"""The engine: batches of pixels and masks to embeddings and states, and reranking of states. Tensors in, arrays out.

B = images, T = tokens, H = heads, D = hidden size, E = embedding size, N = patches, K = states.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from phs_milvus.contract.errors import ModelError, shown
from phs_milvus.contract.location import LocateTarget
from phs_milvus.contract.types import Float32Array, RerankInputs, States
from phs_server.model.batch import Encoded, PromptBatch, on_device, to_tensors
from phs_server.model.checkpoint import Checkpoint
from phs_server.model.cuda import CudaRunner
from phs_server.model.devices import resolve_precision
from phs_server.model.fovea import takes_bias
from phs_server.model.head_selection import score_heads, select_heads, shifted_attention
from phs_server.model.kernels import speed_up
from phs_server.model.locate import Located, Locator, Sought
from phs_server.model.reranking import StateReader

log = logging.getLogger(__name__)

# Images located at once: each puts as many rows as it has patches through the readout.
_LOCATED_TOGETHER = 4
# With the model's own float32 embedding, for an engine that is to be served.
_LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "float16": 0.999}


class FocusEngine:
    """Runs one model on one device. Thread-safe: on a GPU two threads overlap one batch's copies with another's
    computation, on a CPU they take turns.

    Args:
        checkpoint: its backbone is cast, moved and rewritten in place.
        device: a torch device.
        precision: "float32", "bfloat16", "float16" or "auto".
        gpu_mode: "graphs" records a CUDA graph per batch size, "eager" does not.
        cpu_kernels: "auto", "torch" or "onednn"; see `speed_up`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        precision: str,
        gpu_mode: str = "graphs",
        cpu_kernels: str = "auto",
    ) -> None:
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, self.device)
        self.backbone = checkpoint.backbone
        self._locator = Locator(self.backbone)
        self._locator.to(self.device)
        self.backbone.set_precision(getattr(torch, self.precision))
        self.backbone.to(self.device)
        self._sample, self._sample_embedding = checkpoint.sample, checkpoint.sample_embedding
        self._patches = checkpoint.preprocessing.grid**2
        mean, std = (torch.tensor(values) for values in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std))
        # (x / 255 - mean) / std as one multiply-add.
        self._gain = (1 / (255 * std)).view(1, 3, 1, 1).to(self.device)
        self._offset = (-mean / std).view(1, 3, 1, 1).to(self.device)
        self._largest = sys.maxsize
        self._states = StateReader(self.backbone.readout, self.device, self.precision)
        self._gpu_mode = gpu_mode
        self._cuda: CudaRunner | None = None
        # Around forwards: foveal attention hooks the modules, which two threads of a GPU share.
        self._lock = threading.Lock()
        if self.device.type == "cuda":
            self._cuda = CudaRunner(self._forward, self.device, self._lock)
        elif self.device.type == "cpu":
            speed_up(self.backbone, self._patches + 1, cpu_kernels)

    def warm_up(self, max_batch_size: int) -> None:
        """Runs the batch sizes to come once, so that the first request pays for no lazy set-up.

        On a GPU records the graphs. Sizes that do not fit into its memory are split from then on.

        Raises:
            ModelError: in this precision, with this device's kernels, the embedding is not the model's own.
        """
        sizes = {1, max_batch_size} if self._cuda is None else batch_buckets(max_batch_size)
        for size in sorted(sizes):
            pixels, prompts = self.sample_batch(size)
            if self._cuda is not None and self._gpu_mode != "eager":
                try:
                    self._cuda.capture(pixels, prompts.masks, prompts.head_counts, _shifts(prompts))
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise ModelError(f"not one image fits into the memory of {self.device}") from None
                    self._largest = max(1, size // 2)
                    log.warning("a batch of %d does not fit into the memory of %s", size, self.device)
                    return
                except RuntimeError as error:
                    log.warning("CUDA graphs are off, this model cannot be captured: %s", shown(error))
                    self._gpu_mode = "eager"
            self._check(self.encode(pixels, prompts).embedding)

    @property
    def has_fovea(self) -> bool:
        """Whether the model can run foveal attention."""
        return takes_bias(self.backbone.layers)

    def encode(self, pixels: np.ndarray, prompts: PromptBatch[np.ndarray]) -> Encoded:
        """Encodes a batch. Halves it, now and from then on, where the device runs out of memory.

        Args:
            pixels: uint8 [B, 3, S, S], RGB.
            prompts: theirs, in the same order. Heads are selected by the attention before it is shifted.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        return self._halving(pixels, prompts, keep=False)[0]

    def encode_and_keep(self, pixels: np.ndarray, prompts: PromptBatch[np.ndarray]) -> tuple[Encoded, list[Tensor]]:
        """As `encode`, with what enters the last layer of each image, [T, D], on the device: what `encode_kept`,
        `region_features` and `locate` take. Not for foveal prompts, which change it."""
        return self._halving(pixels, prompts, keep=True)

    @torch.inference_mode()
    def encode_kept(self, tokens: Sequence[Tensor], prompts: PromptBatch[np.ndarray]) -> Encoded:
        """Encodes images again, under other prompts and without the model's trunk; one prompt for each of `tokens`."""
        with self._lock:
            outputs = self._read_prompts(self._stacked(tokens), to_tensors(prompts, self.device))
            return Encoded(*(output.cpu().numpy() for output in outputs))

    @torch.inference_mode()
    def region_features(self, tokens: Tensor, masks: np.ndarray) -> Float32Array:
        """What is in each of an image's masks, float32 [P, N], as the mean of the last layer's patch tokens: float32
        [P, D], l2-normalised."""
        with self._lock:
            features = self._locator.region_features(self._stacked([tokens]), on_device(self.device, masks))
            return features.cpu().numpy()

    @torch.inference_mode()
    def locate(self, tokens: Sequence[Tensor], target: LocateTarget) -> Located:
        """Where in B images, kept by `encode_and_keep`, the thing is that is looked for."""
        embedding, weights, *optional = (
            None if array is None else on_device(self.device, array) for array in target.arrays
        )
        assert embedding is not None and weights is not None
        sought = Sought(embedding, weights, *optional)
        parts = []
        for start in range(0, len(tokens), _LOCATED_TOGETHER):
            with self._lock:
                located = self._locator.locate(self._stacked(tokens[start : start + _LOCATED_TOGETHER]), sought)
                parts.append([part.cpu().numpy() for part in located])
        return Located(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _halving(
        self, pixels: np.ndarray, prompts: PromptBatch[np.ndarray], keep: bool
    ) -> tuple[Encoded, list[Tensor]]:
        while True:
            size = min(self._largest, len(pixels))
            try:
                parts, kept = [], []
                for start in range(0, len(pixels), size):
                    arrays, tokens = self._run(pixels[start : start + size], prompts[start : start + size], keep)
                    parts.append(arrays)
                    kept += [] if tokens is None else list(tokens)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._largest = size // 2
                log.warning("%s: out of memory at %d images; at most %d from now on", self.device, size, size // 2)
                continue
            return Encoded(*(np.concatenate(column) for column in zip(*parts, strict=True))), kept

    def _stacked(self, tokens: Sequence[Tensor]) -> Tensor:
        return torch.stack([each.to(self.device, self.backbone.dtype) for each in tokens])

    def read_out(self, states: States, weights: Float32Array, check: Callable[[], None] = lambda: None) -> Float32Array:
        """Embeddings of states; see `StateReader.read_out`."""
        return self._states.read_out(states, weights, check)

    def rerank(self, inputs: RerankInputs, check: Callable[[], None] = lambda: None) -> Float32Array:
        """Exact Query-DB scores; see `StateReader.rerank`."""
        return self._states.rerank(inputs, check)

    def _run(
        self, pixels: np.ndarray, prompts: PromptBatch[np.ndarray], keep: bool
    ) -> tuple[list[np.ndarray], Tensor | None]:
        # Changes to the trunk are rare, and no graph is recorded for them.
        if self._cuda is not None and prompts.fovea is None:
            return self._cuda.run(pixels, prompts.masks, prompts.head_counts, _shifts(prompts), keep=keep)
        with self._lock:
            *outputs, tokens = self._encode(torch.from_numpy(pixels).to(self.device), to_tensors(prompts, self.device))
        return [output.cpu().numpy() for output in outputs], tokens if keep else None

    def _forward(self, pixels: Tensor, masks: Tensor, head_counts: Tensor, shifts: Tensor) -> tuple[Tensor, ...]:
        """What a graph records: a batch that leaves the trunk alone."""
        return self._encode(pixels, PromptBatch(masks, head_counts, shifts))

    @torch.inference_mode()
    def _encode(self, pixels: Tensor, prompts: PromptBatch[Tensor]) -> tuple[Tensor, ...]:
        """The fields of Encoded, and the tokens [B, T, D] that enter the last layer, on the device."""
        tokens = self.backbone.tokens(pixels.float() * self._gain + self._offset, prompts.fovea)
        return *self._read_prompts(tokens, prompts), tokens

    def _read_prompts(self, tokens: Tensor, prompts: PromptBatch[Tensor]) -> tuple[Tensor, ...]:
        """The fields of Encoded, on the device."""
        last = self.backbone.attend(tokens, prompts)
        scores = score_heads(last.attention, prompts.masks)
        weights = select_heads(scores, prompts.head_counts)
        embeddings = self.backbone.readout(last.residual, last.head_outputs, weights)
        states = torch.stack([last.residual, last.head_outputs], dim=1).to(torch.float16)
        attention, shift = last.attention, prompts.attention_shift
        if shift is not None:
            attention = shifted_attention(attention, prompts.masks, shift)
        return embeddings, states, scores, weights, attention

    def _check(self, embeddings: Float32Array) -> None:
        """Raises ModelError where the embeddings [B, E] of the sample are not the one of the model as it was loaded."""
        cosine = float((embeddings @ self._sample_embedding).min())
        least = _LEAST_COSINE[self.precision]
        if not cosine >= least:
            raise ModelError(
                f"self-check failed: in {self.precision} on {self.device} a batch of {len(embeddings)} has cosine "
                f"{cosine:.6f} with the model's own float32 embedding (needed: {least:g}); refusing to serve it. Try "
                "--precision float32 or --gpu-mode eager"
            )

    def sample_batch(self, size: int) -> tuple[np.ndarray, PromptBatch[np.ndarray]]:
        """Arguments of `encode` for the checkpoint's sample, `size` times, without a prompt."""
        masks = np.zeros((size, self._patches), np.float32)
        counts = np.full(size, self.backbone.heads, np.int64)
        return np.repeat(self._sample[None], size, axis=0), PromptBatch(masks, counts)


def batch_buckets(max_batch_size: int) -> list[int]:
    """Batch sizes worth a graph of their own: 1, 2, 3, 4, 6, 8, 12, 16, ..., so that padding adds half at most."""
    sizes = {base * factor // 2 for base in (2**power for power in range(1, 16)) for factor in (1, 2, 3)}
    return sorted({size for size in sizes if size < max_batch_size} | {max_batch_size})


def _shifts(prompts: PromptBatch[np.ndarray]) -> np.ndarray:
    """float32 [B]: zeros where no item has an attention shift."""
    shift = prompts.attention_shift
    return np.zeros(len(prompts.masks), np.float32) if shift is None else shift


def compact(tokens: Tensor) -> Tensor:
    """A copy of tokens in 2 bytes a number; in full where a number is too large for that."""
    if tokens.element_size() == 2:
        copy = tokens.clone()
        if tokens.is_cuda:  # made on another stream, whose next batch would take its memory before it is copied
            torch.cuda.current_stream(tokens.device).synchronize()
        return copy
    half = tokens.half()
    return half if bool(half.isfinite().all()) else tokens.clone()
