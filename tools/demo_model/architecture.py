"""The demo model's architecture, its change of input size, and attention for training on CPUs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def matmul_attention(module, query, key, value, mask, scaling=None, dropout=0.0, **unused):
    """Attention as two matrix products, softmax in the products' dtype (bfloat16).

    Two to three times faster to train on a CPU than the fused kernel, whose backward is slow there.
    query, key, value: [B, H, T, d] -> [B, T, H, d].
    """
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    with torch.autocast("cpu", enabled=False):
        weights = scores.softmax(-1)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS["demo_matmul"] = matmul_attention


def new_model(pixels: int, attention: str = "sdpa") -> ViTModel:
    """The architecture at one input size; no pooler."""
    config = ViTConfig(
        hidden_size=240,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=960,
        image_size=pixels,
        patch_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = attention
    return ViTModel(config, add_pooling_layer=False)


def cls_embedding(model: ViTModel, images: torch.Tensor) -> torch.Tensor:
    """The final [CLS] embedding [B, D] of images [B, 3, P, P], as `model(images)` gives it.

    The last layer computes the [CLS] row alone, which is all the loss reads: an eighth less work.
    """
    tokens = model.embeddings(images)
    *layers, last = model.layers
    for layer in layers:
        tokens = layer(tokens)
    normed, attention = last.layernorm_before(tokens), last.attention
    query, key, value = (
        linear(x).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for linear, x in ((attention.q_proj, normed[:, :1]), (attention.k_proj, normed), (attention.v_proj, normed))
    )
    heads = F.scaled_dot_product_attention(query, key, value)[:, :, 0].flatten(1)
    y = tokens[:, 0] + attention.o_proj(heads)
    return model.layernorm(y + last.mlp(last.layernorm_after(y)))


def at_size(state: dict[str, torch.Tensor], pixels: int) -> dict[str, torch.Tensor]:
    """The weights with the position grid interpolated to another input size."""
    name = "embeddings.position_embeddings"
    table = state[name].float()
    old, new = math.isqrt(table.shape[1] - 1), pixels // 16
    if old == new:
        return state
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new * new, -1)
    return {**state, name: torch.cat([table[:, :1], grid], 1)}
