"""The engine: batches of pixels and masks to embeddings and states, and reranking of states. Tensors in, arrays out.

B = images, H = heads, D = hidden size, E = embedding size, N = patches, Q = queries, K = candidates.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from phs_milvus.contract.errors import InvalidInput, ModelError
from phs_milvus.contract.types import MOST_READOUTS, Float32Array, RerankInputs
from phs_server.model.batch import Encoded, PromptBatch, to_tensors
from phs_server.model.checkpoint import Checkpoint
from phs_server.model.cuda import CudaRunner
from phs_server.model.fovea import takes_bias
from phs_server.model.head_selection import score_heads, select_heads, shifted_attention
from phs_server.model.kernels import speed_up

log = logging.getLogger(__name__)

# Rows (distinct head weights x states) read out at once: at most, which bounds memory at about 100 MiB for D=1024
# whatever K is, and at least, below which products are slow. In between it is what takes _RERANK_SECONDS.
_RERANK_ROWS, _FEWEST_RERANK_ROWS = 2048, 256
_RERANK_SECONDS = 0.1
# Distinct head weights among them.
_RERANK_WEIGHTS = 32
# Cosines computed at once.
_RERANK_PRODUCTS = 2**21
# With the model's own float32 embedding, for an engine that is to be served.
_LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.999, "float16": 0.999}


class FocusEngine:
    """Runs one model on one device. Thread-safe: on a GPU two threads overlap one batch's copies with another's
    computation, on a CPU they take turns.

    Args:
        checkpoint: its backbone is cast, moved and rewritten in place.
        device: a torch device.
        precision: "float32", "bfloat16", "float16" or "auto".
        gpu_mode: "graphs" records a CUDA graph per batch size, "compile" compiles the model as well, "eager" neither.
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
        self.backbone.set_precision(getattr(torch, self.precision))
        self.backbone.to(self.device)
        self._sample, self._sample_embedding = checkpoint.sample, checkpoint.sample_embedding
        self._patches = checkpoint.preprocessing.grid**2
        mean, std = (torch.tensor(values) for values in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std))
        # (x / 255 - mean) / std as one multiply-add.
        self._gain = (1 / (255 * std)).view(1, 3, 1, 1).to(self.device)
        self._offset = (-mean / std).view(1, 3, 1, 1).to(self.device)
        self._largest = sys.maxsize
        self._rerank_rows = 512
        self._gpu_mode = gpu_mode
        self._cuda: CudaRunner | None = None
        # Around forwards: foveal attention hooks the modules, which two threads of a GPU share.
        self._lock = threading.Lock()
        if self.device.type == "cuda":
            forward = torch.compile(self._forward) if gpu_mode == "compile" else self._forward
            self._cuda = CudaRunner(forward, self.device, self._lock)
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
                    self._cuda.capture(pixels, prompts.masks, prompts.head_counts)
                except torch.OutOfMemoryError:
                    if size == 1:
                        raise ModelError(f"not one image fits into the memory of {self.device}") from None
                    self._largest = max(1, size // 2)
                    log.warning("a batch of %d does not fit into the memory of %s", size, self.device)
                    return
                except RuntimeError as error:
                    log.warning("CUDA graphs are off, this model cannot be captured: %s", str(error).splitlines()[0])
                    self._cuda = CudaRunner(self._forward, self.device, self._lock)  # not compiled either
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
        while True:
            size = min(self._largest, len(pixels))
            try:
                starts = range(0, len(pixels), size)
                parts = [self._run(pixels[start : start + size], prompts[start : start + size]) for start in starts]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._largest = size // 2
                log.warning("%s: out of memory at %d images; at most %d from now on", self.device, size, size // 2)
                continue
            return Encoded(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @torch.inference_mode()
    def rerank(self, inputs: RerankInputs, check: Callable[[], None] = lambda: None) -> Float32Array:
        """Exact Query-DB scores: every state is read out with each query's head weights.

        Queries with equal head weights share one readout of the candidates, and the readouts for distinct weights go
        through the layers in chunks. Holds the scores and one chunk, however many queries and weights there are.

        Args:
            inputs: embeddings are l2-normalised here.
            check: called between chunks, about every 100 ms on a CPU; what it raises ends the reranking.

        Returns:
            float32 [Q, K], cosine similarity.

        Raises:
            InvalidInput: more distinct head weights x states than one request may ask for.
            ModelError: a score that is not finite.
        """
        distinct, members = _groups(inputs.head_weights)
        _check_readouts(len(distinct), len(inputs.states))
        queries = torch.nn.functional.normalize(_on(self.device, inputs.embeddings), dim=-1)
        weights, states = _on(self.device, distinct), _on(self.device, inputs.states)
        scores = torch.empty(len(queries), len(states), device=self.device)
        together = min(len(distinct), _RERANK_WEIGHTS)
        start = 0
        while start < len(states):
            stop = start + max(1, self._rerank_rows // together)
            for first in range(0, len(distinct), together):
                check()
                began = time.monotonic()
                candidates = self._read_out(states[start:stop], weights[first : first + together])
                self._pace_reranks(candidates.shape[0] * candidates.shape[1], time.monotonic() - began)
                for rows, theirs in zip(members[first : first + together], candidates, strict=True):
                    for some in rows.split(max(1, _RERANK_PRODUCTS // len(theirs))):
                        check()
                        scores[some, start:stop] = queries[some] @ theirs.T
            start = stop
        if not scores.isfinite().all():
            raise ModelError(
                f"scores of the model in {self.precision} are not finite for these head weights and states; "
                "try --precision float32"
            )
        return scores.clamp_(-1, 1).cpu().numpy()

    def _read_out(self, states: Tensor, weights: Tensor) -> Tensor:
        """states [K, 2, D] and head weights [W, H] -> embeddings [W, K, E]."""
        residual, outputs = (part.repeat(len(weights), 1) for part in states.unbind(1))
        embeddings = self.backbone.readout(residual, outputs, weights.repeat_interleave(len(states), dim=0))
        return embeddings.unflatten(0, (len(weights), len(states)))

    def _pace_reranks(self, rows: int, seconds: float) -> None:
        """Sizes the chunks to come by how long one took. On a GPU, which only queues the work, they stay large."""
        if rows >= self._rerank_rows // 2:
            aim = int(rows * _RERANK_SECONDS / max(seconds, 1e-6))
            self._rerank_rows = max(_FEWEST_RERANK_ROWS, min(aim, 2 * self._rerank_rows, _RERANK_ROWS))

    def _run(self, pixels: np.ndarray, prompts: PromptBatch[np.ndarray]) -> list[np.ndarray]:
        # Changes to the attention are rare, and no graph is recorded for them.
        if self._cuda is not None and not prompts.changes_attention:
            return self._cuda.run(pixels, prompts.masks, prompts.head_counts)
        with self._lock:
            outputs = self._encode(torch.from_numpy(pixels).to(self.device), to_tensors(prompts, self.device))
        return [output.cpu().numpy() for output in outputs]

    def _forward(self, pixels: Tensor, masks: Tensor, head_counts: Tensor) -> tuple[Tensor, ...]:
        """What a graph records: a batch that leaves the attention alone."""
        return self._encode(pixels, PromptBatch(masks, head_counts))

    @torch.inference_mode()
    def _encode(self, pixels: Tensor, prompts: PromptBatch[Tensor]) -> tuple[Tensor, ...]:
        """The fields of Encoded, on the device."""
        last = self.backbone(pixels.float() * self._gain + self._offset, prompts)
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


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto": bfloat16 on GPUs and on CPUs with native bfloat16 products, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # From Ampere on; torch.cuda.is_bf16_supported() counts emulation, which is slower than float32.
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return "bfloat16" if native else "float32"
    if device.type == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX: bfloat16 is 4-5 times faster than float32 there, and slower elsewhere."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_devices(devices: str) -> list[str]:
    """Device names out of a comma-separated list; "auto": the first CUDA device where there is one, else the CPU.

    Raises:
        ModelError: a device that torch does not have, or one named twice.
    """
    if devices == "auto":
        return ["cuda:0" if torch.cuda.is_available() else "cpu"]
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}; try cpu") from error
    if len(set(names)) < len(names):
        raise ModelError(f"devices '{devices}' names a device twice")
    return names


def available_cores() -> int:
    """CPU cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """A copy on `device`: arrays read from messages are read-only, which torch only warns about."""
    return torch.tensor(array, device=device)


def _groups(weights: Float32Array) -> tuple[Float32Array, list[Tensor]]:
    """The distinct rows [W, H] of head weights [Q, H], and for each of them the indices of its queries."""
    bytes_of_rows = np.ascontiguousarray(weights).view(np.dtype((np.void, weights.itemsize * weights.shape[1])))
    _, first, group = np.unique(bytes_of_rows.reshape(-1), return_index=True, return_inverse=True)
    members = torch.from_numpy(group.argsort(kind="stable")).split(np.bincount(group).tolist())
    return weights[first], list(members)


def _check_readouts(distinct: int, states: int) -> None:
    if distinct * states > MOST_READOUTS:
        raise InvalidInput(
            f"{distinct} distinct head weights for {states} states make {distinct * states} readouts; one request may "
            f"ask for {MOST_READOUTS}: split the queries or the states into several",
            "head_weights",
        )
