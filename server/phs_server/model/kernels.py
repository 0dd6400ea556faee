"""Faster products for transformers' layers on CPUs: same weights, same equations, the kernels that are fastest here.

torch sends a float32 linear layer to MKL and a bfloat16 one to oneDNN. Either may be the faster one (trials.py), and
oneDNN is faster still with the weights in a layout of its own, and with GELU applied within the product. SDPA has no
native bfloat16 product on CPUs without AMX: 23 ms where two plain products take 10 (ViT-B/14, 8 images, one core).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn

from phs_server.model.backbone import Backbone
from phs_server.model.trials import TOLERANCE, Trials, Way, agree

log = logging.getLogger(__name__)

KERNELS = ("auto", "torch", "onednn")
# Rows the weights are laid out for; other numbers of rows work as well.
_TYPICAL_ROWS = 2048
_ATTENTION = "phs_cpu"
# Images in a trial, and the most multiplications where it tries a linear layer.
_TRIED = 2
_MOST_WORK = 2 * 10**9


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


class ThenGelu(nn.Module):
    """A linear layer and GELU, which takes the place of its input: there is no second tensor of that size."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.ops.aten.gelu_(self.linear(x))


# The ways to compute a linear layer, and one with GELU behind it. The first is torch's own.
_LINEAR: dict[str, Callable[[nn.Linear], nn.Module]] = {"torch": lambda linear: linear, "onednn": OneDnnLinear}
_LINEAR_GELU: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "torch": ThenGelu,
    "onednn": lambda linear: ThenGelu(OneDnnLinear(linear)),
    "onednn-gelu": lambda linear: OneDnnLinear(linear, gelu=True),
}


def speed_up(backbone: Backbone, tokens: int, kernels: str = "auto") -> None:
    """Gives the linear layers and the attention of a backbone in its final precision the fastest kernels, in place.

    Args:
        tokens: of one image.
        kernels: "auto" tries them, for a second at most, and remembers what was fastest on this machine; "onednn" takes
            oneDNN's wherever their results agree, "torch" leaves the layers as they are.
    """
    dtype = backbone.dtype
    if kernels == "torch" or dtype not in TOLERANCE:
        return
    if not _onednn_agrees(dtype):
        log.info("CPU kernels: torch's; oneDNN's are absent from this torch, or different in result")
        return
    trials = Trials(dtype)
    choose = _Fastest(trials, tokens) if kernels == "auto" else _always_onednn
    for part in (backbone.model, backbone.readout):
        _replace_linears(part, choose)
    size = backbone.hidden_size // backbone.heads
    if kernels == "auto":
        attention = _fastest_attention(trials, backbone.heads, tokens, size, dtype)
    else:
        attention = "products" if dtype is torch.bfloat16 and not _has_amx() else "sdpa"
    if attention == "products":
        use_plain_attention(backbone.model)
    found = (
        "; ".join(f"{what} {name}" for what, name in trials.found.items()) or f"linear onednn; attention {attention}"
    )
    tried = f" (tried for {trials.seconds:.2g} s)" if trials.seconds else ""
    log.info("CPU kernels, %s, %d threads: %s%s", str(dtype)[6:], torch.get_num_threads(), found, tried)


def use_plain_attention(model: nn.Module) -> int:
    """Makes transformers' layers attend by `_plain_attention`; returns in how many (sub)models."""
    transformers.AttentionInterface.register(_ATTENTION, _plain_attention)
    models = [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
    for module in models:
        module.set_attn_implementation(_ATTENTION)
    return len(models)


@torch.inference_mode()
def _onednn_agrees(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(96, 48).to(dtype)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        return agree(OneDnnLinear(linear)(x), linear(x)) and agree(
            OneDnnLinear(linear, gelu=True)(x), nn.functional.gelu(linear(x))
        )
    except (AttributeError, RuntimeError):
        return False


def _has_amx() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


class _Fastest:
    """Chooses for each shape of linear layer, by the first of its kind."""

    def __init__(self, trials: Trials, tokens: int) -> None:
        self._trials, self._tokens = trials, tokens

    def __call__(self, linear: nn.Linear, gelu: bool) -> nn.Module:
        width, out = linear.in_features, linear.out_features
        kinds = _LINEAR_GELU if gelu else _LINEAR
        what = f"linear {width} > {out}{' + GELU' if gelu else ''}"
        ways = {name: _maker(kind, linear) for name, kind in kinds.items()}
        rows = max(1, min(_TRIED * self._tokens, _MOST_WORK // (width * out)))
        name = self._trials.fastest(what, ways, lambda: (torch.randn(rows, width).to(linear.weight.dtype),))
        return kinds[name](linear)


def _maker(kind: Callable[[nn.Linear], nn.Module], linear: nn.Linear) -> Callable[[], Way]:
    return lambda: kind(linear)


def _always_onednn(linear: nn.Linear, gelu: bool) -> nn.Module:
    return OneDnnLinear(linear, gelu)


def _fastest_attention(trials: Trials, heads: int, tokens: int, size: int, dtype: torch.dtype) -> str:
    def inputs() -> tuple[Tensor, ...]:
        # As projections give them: heads side by side in each token.
        return tuple(torch.randn(_TRIED, tokens, heads, size).to(dtype).transpose(1, 2) for _ in range(3))

    def products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _products(query, key, value, size**-0.5)

    what = f"attention {heads} x {tokens} x {size}"
    return trials.fastest(what, {"sdpa": lambda: _sdpa, "products": lambda: products}, inputs)


def _replace_linears(module: nn.Module, choose: Callable[[nn.Linear, bool], nn.Module]) -> None:
    # An MLP of the common form fc1, activation, fc2: the activation moves to the first product.
    fuses = type(getattr(module, "activation_fn", None)).__name__ == "GELUActivation" and hasattr(module, "fc1")
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, choose(child, fuses and name == "fc1"))
        else:
            _replace_linears(child, choose)
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
    """transformers' attention interface: query, key, value [B, H, T, d] -> ([B, T, H, d], no weights)."""
    if attention_mask is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # slow to import, and rarely used

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return _products(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def _products(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Attention as two products, [B, H, T, d] -> [B, T, H, d].

    An image at a time, with its softmax in place, so that the scores of a usual one stay in cache.
    """
    out = torch.empty_like(query.transpose(1, 2))
    none = query.new_empty(1, 1, 1)
    for q, k, v, o in zip(query, key, value, out, strict=True):
        scores = torch.baddbmm(none, q, k.transpose(1, 2), beta=0, alpha=scaling)
        torch.softmax(scores, dim=-1, out=scores)
        o.copy_((scores @ v).transpose(0, 1))
    return out


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What transformers calls, [B, H, T, d] -> [B, T, H, d]."""
    return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous()
