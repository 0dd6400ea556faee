"""The last attention for the pooled token alone: one query row instead of one per patch.

B = images, T = tokens, N = patches, D = hidden size, H = heads, d = D / H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from phs_server.head_selection import roi_attention

Rope = tuple[Tensor, Tensor]


class Look(NamedTuple):
    """How prompts change the attention itself, for batches where any does.

    mask: float32 [B, N] in [0, 1]; roi: float32 [B], see `roi_attention`; fovea: float32 [B, N], added to the logits.
    """

    mask: Tensor
    roi: Tensor
    fovea: Tensor


class LastLayer(NamedTuple):
    """What the last attention gives for the pooled token; (residual, heads) is the PHS state.

    residual: [B, D], the [CLS] hidden state entering the layer; zeros for an attention-pooling head.
    heads: [B, D], the outputs of the H heads side by side, before the output projection.
    attention: float32 [B, H, N], softmax over all tokens, patch columns only; before roi, after fovea.
    """

    residual: Tensor
    heads: Tensor
    attention: Tensor


class _SingleQueryAttention(nn.Module):
    """Keys and values for all tokens in one product, softmax in float32, one query per image."""

    def __init__(self, heads: int, key: nn.Linear, value: nn.Linear, prefix_tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.prefix_tokens = prefix_tokens
        width = key.out_features
        self.key_value = nn.Linear(key.in_features, 2 * width)
        with torch.no_grad():
            self.key_value.weight.copy_(torch.cat((key.weight, value.weight)))
            zeros = torch.zeros(width)
            biases: list[Tensor] = [zeros if part.bias is None else part.bias for part in (key, value)]
            self.key_value.bias.copy_(torch.cat(biases))

    def attend(
        self, query: Tensor, tokens: Tensor, rope: Rope | None, look: Look | None = None
    ) -> tuple[Tensor, Tensor]:
        """query [B, D] or [1, D] and normed tokens [B, T, D] -> (heads [B, D], attention float32 [B, H, N])."""
        batch, count, hidden = tokens.shape
        size = hidden // self.heads
        key, value = self.key_value(tokens).view(batch, count, 2, self.heads, size).permute(2, 0, 3, 1, 4)
        if rope is not None:
            key = _rotate_patches(key, *rope)
        query = query.view(-1, self.heads, 1, size) * size**-0.5
        logits = (query @ key.transpose(2, 3)).float()
        prefix = self.prefix_tokens
        if look is not None:
            logits[..., prefix:] += look.fovea[:, None, None]
        attention = logits.softmax(dim=-1)
        patches = attention[:, :, 0, prefix:]
        if look is not None:
            kept = attention[..., :prefix] * (1 - look.roi).view(-1, 1, 1, 1)
            attention = torch.cat((kept, roi_attention(patches, look.mask, look.roi).unsqueeze(2)), dim=-1)
        heads = (attention.to(value.dtype) @ value).view(batch, hidden)
        return heads, patches


class ClsAttention(_SingleQueryAttention):
    """The first half of a transformer layer, for the [CLS] token only."""

    def __init__(
        self,
        heads: int,
        norm1: nn.Module,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        prefix_tokens: int,
    ) -> None:
        super().__init__(heads, key, value, prefix_tokens)
        self.norm1 = norm1
        self.query = query

    def forward(self, tokens: Tensor, rope: Rope | None, look: Look | None = None) -> LastLayer:
        """tokens [B, T, D] entering the layer, [CLS] first, then registers, then patches."""
        normed = self.norm1(tokens)
        heads, attention = self.attend(self.query(normed[:, 0]), normed, rope, look)
        return LastLayer(tokens[:, 0], heads, attention)


class ProbeAttention(_SingleQueryAttention):
    """SigLIP's attention-pooling head: a learned query over all patches and no residual."""

    query: Tensor

    def __init__(self, pooling: nn.MultiheadAttention, probe: Tensor) -> None:
        query, key, value = _split_packed(pooling)
        super().__init__(pooling.num_heads, key, value, prefix_tokens=0)
        with torch.no_grad():
            self.register_buffer("query", query(probe.detach().reshape(1, -1)))

    def forward(self, tokens: Tensor, rope: Rope | None, look: Look | None = None) -> LastLayer:
        """tokens [B, N, D], already through the model's last norm."""
        heads, attention = self.attend(self.query, tokens, rope, look)
        return LastLayer(torch.zeros_like(heads), heads, attention)


def _split_packed(pooling: nn.MultiheadAttention) -> list[nn.Linear]:
    """The query, key and value projections that nn.MultiheadAttention keeps in one [3D, D] weight."""
    parts = []
    for weight, bias in zip(pooling.in_proj_weight.chunk(3), pooling.in_proj_bias.chunk(3), strict=True):
        part = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            part.weight.copy_(weight)
            part.bias.copy_(bias)
        parts.append(part)
    return parts


def _rotate_patches(key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """DINOv3's rotary position embedding on the patch keys [B, H, T, d]; [CLS] and registers have no position."""
    prefix = key.shape[2] - cos.shape[0]
    patches = key[:, :, prefix:]
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((key[:, :, :prefix], rotated), dim=2)
