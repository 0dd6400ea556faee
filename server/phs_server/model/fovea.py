"""Foveal attention, a baseline that PHS is measured against; for evaluation only (docs/DESIGN.md, "Evaluation").

A Gaussian around what the user points at is added to the [CLS] row's logits of the last four layers: here of the last
three of the trunk, by a hook that hands transformers' own attention an additive mask; the cut last layer adds its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

_TRUNK_LAYERS = 3


def takes_bias(layers: Sequence[Any]) -> bool:
    """Whether a trunk of these layers can be biased: it has a [CLS] token, and its attention takes additive masks."""
    attentions = [_attention(layer) for layer in layers[-_TRUNK_LAYERS:]]
    return bool(attentions) and all("attention_mask" in inspect.signature(a.forward).parameters for a in attentions)


@contextmanager
def foveal_trunk(layers: Sequence[Any], bias: Tensor, prefix_tokens: int) -> Iterator[None]:
    """Within it, the last three of `layers` add `bias` to the patch columns of the [CLS] row.

    Args:
        layers: for which `takes_bias` holds.
        bias: float32 [B, N]; nothing is hooked where it is zero.
    """
    if not bias.any():
        yield
        return
    modules = [_attention(layer) for layer in layers[-_TRUNK_LAYERS:]]
    dtype = next(modules[0].parameters()).dtype
    tokens = prefix_tokens + bias.shape[1]
    mask = torch.zeros(len(bias), 1, tokens, tokens, dtype=dtype, device=bias.device)
    mask[:, 0, 0, prefix_tokens:] = bias.to(dtype)

    def with_mask(_: object, args: tuple, kwargs: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        return args[:1], {**kwargs, "attention_mask": mask}

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(with_mask, with_kwargs=True).remove)
        yield


def _attention(layer: Any) -> Any:
    return layer.attention if hasattr(layer, "attention") else layer.self_attn
