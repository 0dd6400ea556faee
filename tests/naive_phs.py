"""PHS the slow, plain way: zero and scale heads inside transformers' own model, by hooks. The reference in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn


def load_original(directory: Path) -> nn.Module:
    """The checkpoint's uncut model in float32, eager attention so that it can return attention weights."""
    config = transformers.AutoConfig.from_pretrained(directory)
    architecture = config.architectures[0]
    if architecture in ("CLIPModel", "SiglipModel"):
        model = getattr(transformers, architecture).from_pretrained(directory, attn_implementation="eager")
    else:
        kind = transformers.AutoModel if architecture != "ViTModel" else transformers.ViTModel
        if architecture == "CLIPVisionModelWithProjection":
            kind = transformers.CLIPVisionModelWithProjection
        extra = {"add_pooling_layer": False} if architecture == "ViTModel" else {}
        model = kind.from_pretrained(directory, attn_implementation="eager", **extra)
    return model.float().eval()


def siglip2_inputs(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """Flattened patches, channels last, one by one, as transformers' own Siglip2 image processor orders them."""
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    patches = [
        pixels[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].permute(0, 2, 3, 1).flatten(1)
        for y in range(rows)
        for x in range(columns)
    ]
    return {
        "pixel_values": torch.stack(patches, dim=1),
        "pixel_attention_mask": torch.ones(len(pixels), len(patches), dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, columns]] * len(pixels)),
    }


@torch.no_grad()
def embedding(model: nn.Module, pixels: Tensor, **kwargs: object) -> Tensor:
    """The model's own embedding [B, E], l2-normalised."""
    name = type(model).__name__
    if name in ("CLIPModel", "SiglipModel"):
        output = model.get_image_features(pixels, **kwargs)
        output = getattr(output, "pooler_output", output)
    elif name == "CLIPVisionModelWithProjection":
        output = model(pixels, **kwargs).image_embeds
    elif name == "Siglip2VisionModel":
        output = model(**siglip2_inputs(pixels, model.config.patch_size)).pooler_output
    elif name in ("CLIPVisionModel", "SiglipVisionModel"):
        output = model(pixels, **kwargs).pooler_output
    else:
        output = model(pixels, **kwargs).last_hidden_state[:, 0]
    return nn.functional.normalize(output, dim=-1)


@torch.no_grad()
def last_attention(model: nn.Module, pixels: Tensor, prefix: int, **kwargs: object) -> Tensor:
    """The last layer's [CLS] attention over the patches, [B, H, N], from output_attentions."""
    attentions = model(pixels, output_attentions=True, **kwargs).attentions
    return attentions[-1][:, :, 0, prefix:]


@torch.no_grad()
def final_patches(model: nn.Module, pixels: Tensor, prefix: int) -> Tensor:
    """The patches' tokens [B, N, D] at the model's end, after its final norm."""
    vision = getattr(model, "vision_model", model)
    if type(model).__name__ == "Siglip2VisionModel":
        return model(**siglip2_inputs(pixels, model.config.patch_size)).last_hidden_state
    tokens = vision(pixels).last_hidden_state
    if type(model).__name__.startswith("CLIP"):  # which norms the pooled token only
        tokens = vision.post_layernorm(tokens)
    return tokens[:, prefix:]


@contextmanager
def head_weights(model: nn.Module, weights: Tensor) -> Iterator[None]:
    """Within it, head h of the last attention is multiplied by weights[h] before the output projection."""
    projection = _output_projection(model)
    size = projection.in_features // len(weights)
    factors = weights.repeat_interleave(size)
    if isinstance(projection, nn.modules.linear.NonDynamicallyQuantizableLinear):
        # nn.MultiheadAttention uses its weight without calling the module, so no hook would run.
        original = projection.weight.data
        projection.weight.data = original * factors
        try:
            yield
        finally:
            projection.weight.data = original
        return
    handle = projection.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factors,))
    try:
        yield
    finally:
        handle.remove()


def _output_projection(model: nn.Module) -> nn.Linear:
    model = getattr(model, "vision_model", model)
    if hasattr(model, "head"):
        return model.head.attention.out_proj
    for path in ("encoder.layer", "encoder.layers", "layers", "model.layer"):
        layers = model
        for name in path.split("."):
            layers = getattr(layers, name, None)
        if layers is not None:
            break
    layer = layers[-1]
    found = [
        module
        for name, module in layer.named_modules()
        if name in ("attention.o_proj", "self_attn.out_proj", "attention.output.dense")
    ]
    assert len(found) == 1
    return found[0]


@torch.no_grad()
def plain_vit(
    model: nn.Module,
    pixels: Tensor,
    mask: Tensor | None = None,
    *,
    roi: float = 0.0,
    bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """A ViT written out layer by layer and head by head: [E], l2-normalised.

    Args:
        pixels: [3, S, S]; mask: [N], for roi; bias: [N], added to the [CLS] logits of the last four layers;
        weights: [H], of the last layer's heads.
    """
    tokens = model.embeddings(pixels.unsqueeze(0))[0]
    layers = list(getattr(model, "layers", None) or model.encoder.layer)
    heads = model.config.num_attention_heads
    size = model.config.hidden_size // heads
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        normed = layer.layernorm_before(tokens)
        attention = layer.attention
        query, key, value = (part(normed) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        outputs = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            logits = query[:, part] @ key[:, part].T / size**0.5
            if bias is not None and number >= len(layers) - 4:
                logits[0, 1:] += bias
            shares = logits.softmax(dim=1)
            if last and roi:
                inside = mask * shares[0, 1:]
                shares[0] *= 1 - roi
                shares[0, 1:] += roi * inside / inside.sum()
            outputs.append(shares @ value[:, part] * (weights[head] if last and weights is not None else 1))
        tokens = tokens + attention.o_proj(torch.cat(outputs, dim=1))
        tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
    return nn.functional.normalize(model.layernorm(tokens[0]), dim=0)
