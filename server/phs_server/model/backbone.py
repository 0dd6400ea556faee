"""A transformers vision model cut in three: trunk, last attention, readout.

Cutting means taking the last layer (or SigLIP's pooling head) and the final norm out of transformers' own model, so
that calling what remains gives exactly the tokens that enter the last attention, SDPA and position handling included.
Attribute names differ between transformers releases; `_pick` takes the first that exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from phs_milvus.contract.errors import ModelError
from phs_server.model.batch import PromptBatch
from phs_server.model.fovea import foveal_trunk
from phs_server.model.last_layer import ClsAttention, LastLayer, ProbeAttention, Rope
from phs_server.model.readout import Readout

# transformers' models have no useful static type: their attributes differ by family and release.
Model = Any
Trunk = Callable[[Model, Tensor], Tensor]


class Backbone(nn.Module):
    """A model cut in three. `forward` is everything up to and including the last attention; `attend` is the last
    attention alone, over tokens that were kept.

    Args:
        layers: those of the trunk, in order; empty where the pooled token is not among the trunk's tokens.
    """

    def __init__(
        self, model: Model, trunk: Trunk, last: ClsAttention | ProbeAttention, readout: Readout, layers: Sequence[Model]
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.model = model
        self.trunk = trunk
        self.last = last
        self.readout = readout
        # Height and width of the pixels, the same for all of them.
        self._input: Sequence[int] = ()

    @property
    def heads(self) -> int:
        """H."""
        return self.readout.heads

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.readout.out.in_features

    @property
    def dtype(self) -> torch.dtype:
        """Precision of trunk and last attention."""
        return next(self.model.parameters()).dtype

    def set_precision(self, dtype: torch.dtype) -> None:
        """Casts everything but the readout's norms and residual sums."""
        self.model.to(dtype)
        self.last.to(dtype)
        self.readout.set_precision(dtype)

    def forward(self, pixel_values: Tensor, prompts: PromptBatch[Tensor] | None = None) -> LastLayer:
        """pixel_values float [B, 3, S, S], normalised -> the last attention for the pooled token."""
        return self.attend(self.tokens(pixel_values, None if prompts is None else prompts.fovea), prompts)

    def tokens(self, pixel_values: Tensor, fovea: Tensor | None = None) -> Tensor:
        """What enters the last attention, [B, T, D]; depends on no prompt but a foveal one, float [B, N]."""
        pixel_values = pixel_values.to(self.dtype)
        self._input = pixel_values.shape[-2:]
        with nullcontext() if fovea is None else foveal_trunk(self.layers, fovea, self.last.prefix_tokens):
            return self.trunk(self.model, pixel_values)

    def attend(self, tokens: Tensor, prompts: PromptBatch[Tensor] | None = None) -> LastLayer:
        """The last attention for the pooled token over the tokens [B, T, D] that enter it."""
        return self.last(tokens.to(self.dtype), self._rope(tokens), prompts)

    def values(self, tokens: Tensor) -> Tensor:
        """tokens [B, T, D] -> what each patch gives to each head, [B, N, D], heads side by side."""
        return self.last.values(tokens.to(self.dtype))

    def patch_tokens(self, tokens: Tensor) -> Tensor:
        """tokens [B, T, D] -> the patches' tokens at the model's end, float32 [B, N, D]: after the last layer and the
        final norm, before a projection."""
        tokens = tokens.to(self.dtype)
        attended = self.last.attend_patches(tokens, self._rope(tokens))
        if attended is None:
            return tokens.float()
        residual = tokens[:, self.last.prefix_tokens :]
        return self.readout.finish(residual.flatten(0, 1), attended.flatten(0, 1)).unflatten(0, attended.shape[:2])

    def _rope(self, tokens: Tensor) -> Rope | None:
        """Rotary position embedding of the last input's size, for the models that have one."""
        if not hasattr(self.model, "rope_embeddings"):
            return None
        rope: Rope = self.model.rope_embeddings(tokens.new_empty((1, 3, *self._input), dtype=self.dtype))
        return rope


@dataclass(frozen=True)
class Family:
    """How one model family is run and cut.

    Attributes:
        trunk: calls the model and returns its last_hidden_state [B, T, D].
        embed: the model's own embedding [B, E], before it is cut; the self-check's reference.
        cut: turns the model into a Backbone; the model is of no other use afterwards.
    """

    trunk: Trunk
    embed: Callable[[Model, Tensor], Tensor]
    cut: Callable[[Model, Trunk], Backbone]


# --- running each family ----------------------------------------------------------------------------------------------


def _run(model: Model, pixel_values: Tensor, **kwargs: object) -> Tensor:
    return model(pixel_values, **kwargs).last_hidden_state


def _run_interpolating(model: Model, pixel_values: Tensor) -> Tensor:
    """For models that interpolate positions only when told; a no-op at the pretraining size."""
    return _run(model, pixel_values, interpolate_pos_encoding=True)


def _siglip2_inputs(model: Model, pixel_values: Tensor) -> dict[str, Tensor]:
    """Siglip2 takes flattened patches [B, N, p*p*3], channels last, and the grid they came from."""
    size = model.config.patch_size
    batch, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    patches = pixel_values.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": patches.reshape(batch, rows * columns, -1),
        "pixel_attention_mask": pixel_values.new_ones(batch, rows * columns, dtype=torch.long),
        "spatial_shapes": torch.tensor([[rows, columns]] * batch),
    }


def _run_siglip2(model: Model, pixel_values: Tensor) -> Tensor:
    return model(**_siglip2_inputs(model, pixel_values)).last_hidden_state


# --- cutting each family ----------------------------------------------------------------------------------------------


def _cut_vit(model: Model, trunk: Trunk) -> Backbone:
    """DINOv2, with or without registers, DINOv3, ViT, DeiT: pre-norm layers, then a norm over all tokens."""
    layers = _pick(model, "layers", "encoder.layer", "model.layer", "layer")
    norm_name = "layernorm" if hasattr(model, "layernorm") else "norm"
    # Between [CLS] and the patches: registers, or DeiT's distillation token.
    others = 1 if model.config.model_type == "deit" else getattr(model.config, "num_register_tokens", 0)
    backbone = _cut_last_layer(model, trunk, layers, getattr(model, norm_name), None, 1 + others)
    setattr(model, norm_name, nn.Identity())
    return backbone


def _cut_clip(model: Model, trunk: Trunk) -> Backbone:
    """CLIP: the post-norm is applied to [CLS] only, so the vision model already returns un-normed tokens."""
    vision = model.vision_model
    layers = _pick(vision, "encoder.layers")
    backbone = _cut_last_layer(vision, trunk, layers, vision.post_layernorm, model.visual_projection, 1)
    vision.post_layernorm = nn.Identity()  # the readout's now, and not to be cast with the trunk
    return backbone


def _cut_last_layer(
    model: Model,
    trunk: Trunk,
    layers: nn.ModuleList,
    final_norm: nn.Module,
    projection: nn.Linear | None,
    prefix_tokens: int,
) -> Backbone:
    layer = layers[-1]
    del layers[-1]
    heads = model.config.num_attention_heads
    last = ClsAttention(
        heads,
        norm1=_pick(layer, "norm1", "layernorm_before", "layer_norm1"),
        query=_pick(layer, "attention.q_proj", "attention.attention.query", "self_attn.q_proj"),
        key=_pick(layer, "attention.k_proj", "attention.attention.key", "self_attn.k_proj"),
        value=_pick(layer, "attention.v_proj", "attention.attention.value", "self_attn.v_proj"),
        prefix_tokens=prefix_tokens,
    )
    readout = Readout(
        heads,
        out=_pick(layer, "attention.o_proj", "attention.output.dense", "self_attn.out_proj"),
        norm2=_pick(layer, "norm2", "layernorm_after", "layer_norm2"),
        mlp=_mlp_of(layer),
        final_norm=final_norm,
        projection=projection,
        scale1=_pick(layer, "layer_scale1.lambda1", default=None),
        scale2=_pick(layer, "layer_scale2.lambda1", default=None),
    )
    return Backbone(model, trunk, last, readout, list(layers))


def _cut_siglip(model: Model, trunk: Trunk) -> Backbone:
    """SigLIP: the attention-pooling head is the last layer, and its residual is zero."""
    head = model.head
    model.use_head = False
    del model.head
    readout = Readout(
        head.attention.num_heads,
        out=head.attention.out_proj,
        norm2=head.layernorm,
        mlp=head.mlp,
        final_norm=nn.Identity(),
    )
    return Backbone(model, trunk, ProbeAttention(head.attention, head.probe), readout, layers=())


def _mlp_of(layer: Model) -> nn.Module:
    """The layer's MLP as one module; older ViT layers keep its two halves apart."""
    if hasattr(layer, "mlp"):
        return layer.mlp
    intermediate, output = _pick(layer, "intermediate"), _pick(layer, "output.dense")
    return nn.Sequential(intermediate, output)


_REQUIRED = object()


def _pick(module: Model, *paths: str, default: Any = _REQUIRED) -> Any:
    """The first attribute path that exists in `module`."""
    for path in paths:
        found: object | None = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    if default is not _REQUIRED:
        return default
    raise ModelError(
        f"{type(module).__name__} of transformers {transformers.__version__} has none of {', '.join(paths)}; "
        "install a transformers version that phs-milvus supports"
    )


def _cls_embedding(trunk: Trunk) -> Trunk:
    return lambda model, pixel_values: trunk(model, pixel_values)[:, 0]


def _clip_embedding(model: Model, pixel_values: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values, interpolate_pos_encoding=True).pooler_output
    return pooled if model.visual_projection is None else model.visual_projection(pooled)


def _siglip_embedding(model: Model, pixel_values: Tensor) -> Tensor:
    return model(pixel_values, interpolate_pos_encoding=True).pooler_output


def _siglip2_embedding(model: Model, pixel_values: Tensor) -> Tensor:
    return model(**_siglip2_inputs(model, pixel_values)).pooler_output


_DINO = Family(_run, _cls_embedding(_run), _cut_vit)
_VIT = Family(_run_interpolating, _cls_embedding(_run_interpolating), _cut_vit)

FAMILIES: dict[str, Family] = {
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "dinov3_vit": _DINO,
    "vit": _VIT,
    "deit": _VIT,
    "clip_vision_model": Family(_run_interpolating, _clip_embedding, _cut_clip),
    "siglip_vision_model": Family(_run_interpolating, _siglip_embedding, _cut_siglip),
    "siglip2_vision_model": Family(_run_siglip2, _siglip2_embedding, _cut_siglip),
}
