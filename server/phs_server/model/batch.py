"""What goes into the engine and what comes out of it, for B images at once.

H = attention heads of the last layer, N = patches, D = hidden size, E = embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from phs_milvus.contract.types import Float16Array, Float32Array

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class PromptBatch(Generic[Array]):
    """What B prompts ask of the last layer: NumPy arrays up to the engine, tensors inside the model.

    Attributes:
        masks: float32 [B, N] in [0, 1], the share of each patch that the mask covers; zeros without a prompt.
        head_counts: int64 [B], heads to keep, 1 to H; H without a prompt.
        attention_shift: float32 [B] in [0, 1], see `Focus`; None where no item of the batch has one.
        fovea: float32 [B, N], added to the [CLS] logits; None where no item of the batch has one.
    """

    masks: Array
    head_counts: Array
    attention_shift: Array | None = None
    fovea: Array | None = None

    def __getitem__(self, rows: slice) -> PromptBatch[Array]:
        """Some of the items."""
        shift, fovea = (None if array is None else array[rows] for array in (self.attention_shift, self.fovea))
        return PromptBatch(self.masks[rows], self.head_counts[rows], shift, fovea)


def to_tensors(prompts: PromptBatch[np.ndarray], device: torch.device) -> PromptBatch[Tensor]:
    """The same numbers on a device."""
    shift, fovea = (
        None if array is None else torch.from_numpy(array).to(device)
        for array in (prompts.attention_shift, prompts.fovea)
    )
    masks, counts = (torch.from_numpy(array).to(device) for array in (prompts.masks, prompts.head_counts))
    return PromptBatch(masks, counts, shift, fovea)


def on_device(device: torch.device, array: np.ndarray) -> Tensor:
    """A copy on a device: arrays read from messages are read-only, which torch only warns about."""
    return torch.tensor(array, device=device)


class Encoded(NamedTuple):
    """Results for B images; those of one image are an `Encoded` without the first axis.

    Attributes:
        embedding: float32 [B, E], l2-normalised.
        state: float16 [B, 2, D].
        head_scores, head_weights: float32 [B, H].
        attention: float32 [B, H, N], after the attention shift.
    """

    embedding: Float32Array
    state: Float16Array
    head_scores: Float32Array
    head_weights: Float32Array
    attention: Float32Array

    def rows(self) -> list[Encoded]:
        """The results of each image."""
        return [Encoded(*row) for row in zip(*self, strict=True)]
