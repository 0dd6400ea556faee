"""Small random checkpoints of every supported family, saved as transformers saves them.

Norms, LayerScale and biases are drawn at random too: at their initial ones and zeros a forgotten one would not show.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

_SMALL = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
_WIDE = {**_SMALL, "intermediate_size": 96}
_TEXT = {**_WIDE, "vocab_size": 99}


def _dinov2(**extra: object) -> torch.nn.Module:
    return transformers.Dinov2Model(
        transformers.Dinov2Config(**_SMALL, image_size=56, patch_size=14, mlp_ratio=2, **extra)
    )


def _dinov2_with_registers(**extra: object) -> torch.nn.Module:
    config = transformers.Dinov2WithRegistersConfig(
        **_SMALL, image_size=56, patch_size=14, mlp_ratio=2, num_register_tokens=4, **extra
    )
    return transformers.Dinov2WithRegistersModel(config)


def _dinov3(**extra: object) -> torch.nn.Module:
    config = transformers.DINOv3ViTConfig(**_WIDE, image_size=64, patch_size=16, num_register_tokens=4, **extra)
    return transformers.DINOv3ViTModel(config)


def _vit() -> torch.nn.Module:
    return transformers.ViTModel(transformers.ViTConfig(**_WIDE, image_size=64, patch_size=16), add_pooling_layer=False)


def _deit() -> torch.nn.Module:
    return transformers.DeiTModel(
        transformers.DeiTConfig(**_WIDE, image_size=64, patch_size=16), add_pooling_layer=False
    )


def _clip_vision_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(**_WIDE, image_size=64, patch_size=16, projection_dim=24)


def _clip_full() -> torch.nn.Module:
    text = transformers.CLIPTextConfig(**_TEXT, projection_dim=24, eos_token_id=1)
    vision = {**_clip_vision_config().to_dict()}
    # A vision_config that does not know the projection, as some published checkpoints have it.
    del vision["projection_dim"]
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=24)
    )


def _siglip_vision_config() -> transformers.SiglipVisionConfig:
    return transformers.SiglipVisionConfig(**_WIDE, image_size=64, patch_size=16)


def _siglip_full() -> torch.nn.Module:
    text = transformers.SiglipTextConfig(**_TEXT)
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text.to_dict(), vision_config=_siglip_vision_config().to_dict())
    )


def _siglip2() -> torch.nn.Module:
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**_WIDE, num_patches=16, patch_size=16))


FAMILIES = {
    "dinov2": _dinov2,
    "dinov2-swiglu": lambda: _dinov2(use_swiglu_ffn=True),
    "dinov2-registers": _dinov2_with_registers,
    "dinov3": _dinov3,
    "dinov3-gated": lambda: _dinov3(use_gated_mlp=True, key_bias=True),
    "vit": _vit,
    "deit": _deit,
    "clip-vision": lambda: transformers.CLIPVisionModelWithProjection(_clip_vision_config()),
    "clip-vision-unprojected": lambda: transformers.CLIPVisionModel(_clip_vision_config()),
    "clip-full": _clip_full,
    "siglip-vision": lambda: transformers.SiglipVisionModel(_siglip_vision_config()),
    "siglip-full": _siglip_full,
    "siglip2-vision": _siglip2,
}
IMAGE_SIZE = {"dinov2": 56, "dinov2-swiglu": 56, "dinov2-registers": 56}


def save_checkpoint(family: str, directory: Path, seed: int = 0) -> Path:
    """Writes config.json, model.safetensors and preprocessor_config.json; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.ndim > 1 else 0.5
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + spread * torch.randn_like(parameter))
    model.save_pretrained(directory)
    size = IMAGE_SIZE.get(family, 64)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory
