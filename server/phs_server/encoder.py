"""The engine: batches of pixels and masks to embeddings and states, and reranking of states. Tensors in, arrays out.

B = images, H = heads, D = hidden size, E = embedding size, N = patches, Q = queries, K = candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phs_milvus.errors import ModelError
from phs_milvus.types import Float16Array, Float32Array
from phs_server.checkpoint import Checkpoint
from phs_server.focus import AttentionChange
from phs_server.fovea import takes_bias
from phs_server.head_selection import roi_attention, roi_scores, select_heads
from phs_server.last_layer import Look

# States read out at once; bounds memory at about 100 MiB for D=1024 whatever K is.
_RERANK_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Results for B images.

    embeddings: float32 [B, E]; states: float16 [B, 2, D]; scores, weights: float32 [B, H];
    attention: float32 [B, H, N], after roi.
    """

    embeddings: Float32Array
    states: Float16Array
    scores: Float32Array
    weights: Float32Array
    attention: Float32Array


class FocusEngine:
    """Runs one model on one device. Not thread-safe: call it from one thread at a time."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str) -> None:
        self.device = torch.device(device)
        self.precision = resolve_precision(precision, self.device)
        self.backbone = checkpoint.backbone
        self.backbone.set_precision(getattr(torch, self.precision))
        self.backbone.to(self.device)
        mean, std = (torch.tensor(values) for values in (checkpoint.preprocessing.mean, checkpoint.preprocessing.std))
        # (x / 255 - mean) / std as one multiply-add.
        self._gain = (1 / (255 * std)).view(1, 3, 1, 1).to(self.device)
        self._offset = (-mean / std).view(1, 3, 1, 1).to(self.device)

    @property
    def has_fovea(self) -> bool:
        """Whether the model can run foveal attention."""
        return takes_bias(self.backbone.layers)

    @torch.inference_mode()
    def encode(
        self, pixels: np.ndarray, masks: np.ndarray, head_counts: np.ndarray, change: AttentionChange | None = None
    ) -> EncodedBatch:
        """Encodes a batch.

        Args:
            pixels: uint8 [B, 3, S, S], RGB.
            masks: float32 [B, N] in [0, 1]; a row of zeros where there is no prompt.
            head_counts: int64 [B], heads to keep; 0 keeps all, for images without a prompt.
            change: roi and fovea of a batch in which any item has one. Heads are selected by the attention before roi.
        """
        images = torch.from_numpy(pixels).to(self.device).float() * self._gain + self._offset
        inside = torch.from_numpy(masks).to(self.device)
        look = None if change is None else Look(inside, *(torch.from_numpy(part).to(self.device) for part in change))
        last = self.backbone(images, look)
        scores = roi_scores(last.attention, inside)
        weights = select_heads(scores, torch.from_numpy(head_counts).to(self.device))
        embeddings = self.backbone.readout(last.residual, last.heads, weights)
        states = torch.stack([last.residual, last.heads], dim=1).to(torch.float16)
        attention = last.attention if look is None else roi_attention(last.attention, look.mask, look.roi)
        return EncodedBatch(*(part.cpu().numpy() for part in (embeddings, states, scores, weights, attention)))

    @torch.inference_mode()
    def rerank(self, embeddings: Float32Array, weights: Float32Array, states: Float16Array) -> Float32Array:
        """Exact Query-DB scores: every state is read out with each query's head weights.

        Args:
            embeddings: float32 [Q, E], l2-normalised here.
            weights: float32 [Q, H].
            states: float16 [K, 2, D].

        Returns:
            float32 [Q, K], cosine similarity.
        """
        queries = torch.nn.functional.normalize(_on(self.device, embeddings), dim=-1)
        distinct, group = torch.unique(_on(self.device, weights), dim=0, return_inverse=True)
        scores = torch.empty(len(queries), len(states), device=self.device)
        for start in range(0, len(states), _RERANK_CHUNK):
            chunk = _on(self.device, states[start : start + _RERANK_CHUNK])
            for index, shared in enumerate(distinct):
                members = (group == index).nonzero().squeeze(1)
                candidates = self.backbone.readout(chunk[:, 0], chunk[:, 1], shared.unsqueeze(0))
                scores[members, start : start + len(chunk)] = queries[members] @ candidates.T
        return scores.clamp_(-1, 1).cpu().numpy()


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto": bfloat16 on GPUs and on CPUs with native bfloat16 products, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    if device.type == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX: bfloat16 is 4-5 times faster than float32 there, and slower elsewhere."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_device(device: str) -> str:
    """ "auto": the first CUDA device where there is one, else the CPU.

    Raises:
        ModelError: a device that torch does not have.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}; try cpu") from error
    return device


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    """A copy on `device`: arrays read from messages are read-only, which torch only warns about."""
    return torch.tensor(array, device=device)
