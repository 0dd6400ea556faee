"""Which attention heads look where the user pointed: pure functions on tensors (arXiv 2504.01348, section 3.2).

B = images, H = heads, N = patches.
"""

from __future__ import annotations

import torch
from torch import Tensor


def default_head_count(heads: int) -> int:
    """h_on for a model of H heads: the paper's 5 for 12 or 16 and 1 for 24; about a third for smaller models."""
    if heads in (12, 16):
        return 5
    if heads == 24:
        return 1
    return max(1, round(heads / 3))


def score_heads(attention: Tensor, mask: Tensor) -> Tensor:
    """The share of each head's attention that falls on the mask: s_h = sum_p m_p A_hp.

    Args:
        attention: float [B, H, N], the [CLS] row over the patches, softmax taken over all tokens.
        mask: float [B, N] in [0, 1], the share of each patch that the mask covers.

    Returns:
        float32 [B, H] in [0, 1].
    """
    return torch.einsum("bhn,bn->bh", attention.float(), mask.float())


def shifted_attention(attention: Tensor, mask: Tensor, shift: Tensor) -> Tensor:
    """Moves a share of each head's attention onto the mask: A' = (1 - shift) A + shift (m * A) / sum_p m_p A_p.

    Args:
        attention: float32 [B, H, N], the patch columns. The other columns are to be multiplied by 1 - shift.
        mask: float [B, N] in [0, 1].
        shift: float [B] in [0, 1].

    Returns:
        float32 [B, H, N]. Where no attention falls on the mask, the mask itself takes its place; where the mask is
        empty, the moved share is lost, so `shift` must be 0 there.
    """
    mask = mask.unsqueeze(1)
    inside = attention * mask
    total = inside.sum(dim=-1, keepdim=True)
    inside = torch.where(total > 0, inside, mask)
    inside = inside / inside.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(inside.dtype).tiny)
    shift = shift.view(-1, 1, 1)
    return (1 - shift) * attention + shift * inside


def select_heads(scores: Tensor, head_counts: Tensor) -> Tensor:
    """Weights that keep the highest-scoring heads and preserve the total: H / h_on for those, 0 for the rest.

    Args:
        scores: float [B, H]. Of equal scores the lower head index wins.
        head_counts: int [B], h_on of each image, 1 to H; H keeps every head with weight 1.

    Returns:
        float32 [B, H].
    """
    heads = scores.shape[1]
    counts = head_counts.unsqueeze(1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return torch.where(rank < counts, heads / counts, 0.0)
