"""Faster products for transformers' layers on x86 CPUs: same weights, same equations, other kernels.

Measured on an AMD Zen 5 core with torch 2.13, ViT-B/14 at 224 px, batch 8 (benchmarks/README.md):
- float32 linear layers go to MKL, which runs at less than half speed on AMD; oneDNN, which torch already uses for
  bfloat16, takes 42 instead of 96 ms for 768 -> 3072. It also adds the bias and applies GELU within the product.
- bfloat16 SDPA has no native product on CPUs without AMX: 23 ms where two plain bfloat16 products take 10.
"""

from __future__ import annotations

import logging

import torch
import transformers
from torch import Tensor, nn

log = logging.getLogger(__name__)

# Rows the weights are laid out for; other numbers of rows work as well.
_TYPICAL_ROWS = 2048
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_ATTENTION = "phs_cpu"
# Attention scores worked on at once: 4 MB in bfloat16, which stays in cache.
_SCORES = 2 * 2**20


class OneDnnLinear(nn.Module):
    """nn.Linear, optionally with GELU behind it, through oneDNN with its own weight layout. Inference only.

    Attributes:
        weight: [out, in] in oneDNN's blocked layout; it can be applied, not read.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)
        self.bias = linear.bias
        self._after = "gelu" if gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self._after, [], "none")


def speed_up(model: nn.Module) -> None:
    """Replaces the linear layers and, where it is slow, the attention of a model in its final precision, in place.

    Leaves the model alone where this torch or CPU lacks the kernels, or where their results differ.
    """
    dtype = next(model.parameters()).dtype
    if not _kernels_agree(dtype):
        log.info("oneDNN's linear kernels are not used: absent from this torch, or different in result")
        return
    _replace_linears(model)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if dtype is torch.bfloat16 and capabilities.get("avx512_bf16") and not capabilities.get("amx_bf16"):
        use_plain_attention(model)


def use_plain_attention(model: nn.Module) -> int:
    """Makes transformers' layers attend by `_plain_attention`; returns in how many (sub)models."""
    transformers.AttentionInterface.register(_ATTENTION, _plain_attention)
    models = [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
    for module in models:
        module.set_attn_implementation(_ATTENTION)
    return len(models)


@torch.inference_mode()
def _kernels_agree(dtype: torch.dtype) -> bool:
    if dtype not in _TOLERANCE or not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(96, 48).to(dtype)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        error = max(
            float((OneDnnLinear(linear)(x) - linear(x)).abs().max()),
            float((OneDnnLinear(linear, gelu=True)(x) - nn.functional.gelu(linear(x))).abs().max()),
        )
    except (AttributeError, RuntimeError):
        return False
    return error < _TOLERANCE[dtype]


def _replace_linears(module: nn.Module) -> None:
    # An MLP of the common form fc1, activation, fc2: the activation moves into the first product.
    fuses = type(getattr(module, "activation_fn", None)).__name__ == "GELUActivation" and hasattr(module, "fc1")
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, OneDnnLinear(child, gelu=fuses and name == "fc1"))
        else:
            _replace_linears(child)
    if fuses:
        module.activation_fn = nn.Identity()


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query, key, value [B, H, T, d] -> ([B, T, H, d], no weights).

    A few images at a time, so that their scores stay in cache: 2 images of 12 heads and 257 tokens.
    """
    if attention_mask is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # slow to import, and rarely used

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    out = torch.empty_like(query.transpose(1, 2))
    count = max(1, _SCORES // query[0, ..., 0].numel() // key.shape[2])
    for q, k, v, o in zip(*(part.split(count) for part in (query, key, value, out)), strict=True):
        o.copy_(((q @ k.transpose(2, 3)).softmax(dim=-1) @ v).transpose(1, 2))
    return out, None
