"""From a model id or directory to a checked `Backbone` and what its preprocessing needs.

Loading is transformers' own, safetensors only, never with remote code. Before a model is served, what we make of a
picture is compared with what transformers' image processor and model make of it: our input with theirs, and the cut
model's readout with every head at weight 1 with the model's own embedding. If they differ, we refuse to serve. The
engine repeats the second on its device (engine.warm_up).
"""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import nn

from phs_milvus.contract.errors import ModelError
from phs_milvus.contract.types import Float32Array
from phs_server.model.backbone import FAMILIES, Backbone, Family, Model
from phs_server.model.folder import check_config, check_counts, check_sizes, count_weights
from phs_server.model.passed import PassedCheck
from phs_server.model.preprocessing import Preprocessing, ProcessorReader, first_line
from phs_server.model.sample import sample_picture

log = logging.getLogger(__name__)

_SUPPORTED = "DINOv2 (with or without registers), DINOv3 ViT, ViT/DeiT/DINO, CLIP, SigLIP and SigLIP2"
# Checkpoints of a text-and-image model, and the vision part we load from them.
_VISION_PART = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
}
# Loaded by class, because the automatic class would load the text half too or drop the projection.
_CLASSES = {
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}
# Weights that checkpoints may lack because inference does not use them.
_UNUSED_WEIGHTS = ("mask_token", "position_ids", "pooler.")
_SELF_CHECK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Checkpoint:
    """A loaded, cut and checked model, in float32 on the CPU.

    Attributes:
        sample: uint8 [3, S, S], a made picture.
        sample_embedding: float32 [E], of the sample by the model before it was cut, l2-normalised.
    """

    model_id: str
    model_type: str
    fingerprint: str
    backbone: Backbone
    preprocessing: Preprocessing
    sample: npt.NDArray[np.uint8]
    sample_embedding: Float32Array


def load(model_id: str, image_size: int | None = None) -> Checkpoint:
    """Loads a checkpoint.

    Args:
        model_id: a Hugging Face hub id, or a directory with config.json, model.safetensors and
            preprocessor_config.json.
        image_size: side of the model's input in pixels; None: what the checkpoint's image processor says.

    Raises:
        ModelError: not found, not a supported family, missing weights, an image processor that cannot be honoured,
            an image size that is no multiple of the patch size, or a self-check that fails.
    """
    # Its table of the text half's weights that we do not load reads like a failure, and is none.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config, model_type = _load_config(model_id)
    if folder := _folder(model_id):
        check_sizes(config, count_weights(folder), model_id)
    reader = ProcessorReader(model_id, model_type)
    preprocessing = reader.preprocessing(model_type, config, image_size)
    side, deviation = preprocessing.image_size, reader.deviation(preprocessing.image_size)
    picture = sample_picture(side, side) if deviation else sample_picture(side * 5 // 4, side * 7 // 8)
    sample, theirs = preprocessing.squashed(picture), reader.model_input(picture, preprocessing)
    ours = preprocessing.normalised(sample)
    reader.check(ours, theirs)
    if deviation:
        log.info("model '%s': %s", model_id, deviation)
    model = _load_model(model_id, model_type, config)
    fingerprint = _fingerprint(model, model_type, preprocessing)
    passed = PassedCheck(fingerprint, config, reader.numbers)
    if (embedding := passed.embedding()) is not None:
        backbone = FAMILIES[model_type].cut(model, FAMILIES[model_type].trunk)
    else:
        backbone, embedding = _cut_and_check(model, FAMILIES[model_type], ours, theirs)
        passed.remember(embedding)
    return Checkpoint(model_id, model_type, fingerprint, backbone, preprocessing, sample, embedding)


def _folder(model_id: str) -> Path | None:
    """The model's directory, where it is one and not a name on the hub."""
    return Path(model_id) if model_id and Path(model_id).is_dir() else None


def _load_config(model_id: str) -> tuple[transformers.PretrainedConfig, str]:
    """The vision model's configuration and its model_type."""
    if folder := _folder(model_id):
        check_config(folder)
    try:
        check_counts(transformers.PretrainedConfig.get_config_dict(model_id)[0], model_id)
        config = transformers.AutoConfig.from_pretrained(model_id, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:  # transformers and huggingface_hub raise many kinds here, some of them ValueError
        raise _not_loadable(model_id, error) from error
    model_type = _VISION_PART.get(config.model_type, config.model_type)
    if model_type not in FAMILIES:
        raise ModelError(f"model '{model_id}' is of type '{config.model_type}'; supported are {_SUPPORTED}")
    if config.model_type in _VISION_PART:
        vision = config.vision_config
        if config.model_type == "clip":
            vision.projection_dim = config.projection_dim
        config = vision
    if not getattr(config, "vision_use_head", True):
        raise ModelError(f"model '{model_id}' has no attention-pooling head (vision_use_head is false)")
    return config, model_type


def _load_model(model_id: str, model_type: str, config: transformers.PretrainedConfig) -> Model:
    name = _CLASSES.get(model_type, "AutoModel")
    extra = {"add_pooling_layer": False} if model_type in ("vit", "deit") else {}
    try:
        model, report = getattr(transformers, name).from_pretrained(
            model_id,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **({"trust_remote_code": False} if name == "AutoModel" else {}),
            **extra,
        )
    except Exception as error:
        raise _not_loadable(model_id, error) from error
    missing = {key for key in report["missing_keys"] if not any(part in key for part in _UNUSED_WEIGHTS)}
    if missing == {"visual_projection.weight"}:
        # A CLIPVisionModel without its projection: the pooled output is the embedding.
        model.visual_projection = None
    elif missing:
        raise ModelError(
            f"model '{model_id}' lacks the weights {', '.join(sorted(missing)[:5])}"
            f"{' and others' if len(missing) > 5 else ''}; is it a complete {model_type} checkpoint?"
        )
    return model.eval().requires_grad_(False)


def _not_loadable(model_id: str, error: Exception) -> ModelError:
    reason = first_line(error)
    if _folder(model_id):
        return ModelError(
            f"cannot load the model in directory '{model_id}': {reason}. "
            "It must hold config.json, model.safetensors and preprocessor_config.json."
        )
    return ModelError(
        f"cannot load model '{model_id}': there is no such directory here, and fetching it from the model hub failed "
        f"({reason}). Pass a directory that holds config.json, model.safetensors and preprocessor_config.json, "
        "for example --model ./models/dinov2-base, or check the network and the model's name."
    )


def _fingerprint(model: Model, model_type: str, preprocessing: Preprocessing) -> str:
    """sha256 over the weights' values, the numbers of the configuration that change results, and preprocessing.

    Weights are hashed one by one and the hashes sorted, because transformers renames parameters between releases.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing lets go of the interpreter
        weights = sorted(pool.map(_digest, model.state_dict().values()))
    config = model.config
    numbers = {
        "type": model_type,
        "heads": config.num_attention_heads,
        "eps": config.layer_norm_eps,
        "act": config.hidden_act,
        "preprocessing": vars(preprocessing),
    }
    text = json.dumps([weights, numbers], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(tensor.float().contiguous().numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _cut_and_check(
    model: Model, family: Family, ours: torch.Tensor, theirs: torch.Tensor
) -> tuple[Backbone, Float32Array]:
    """The cut model, and the whole model's embedding float32 [E].

    Args:
        ours, theirs: one picture as model input, float32 [1, 3, S, S], for the cut model and for the whole one.
    """
    expected = nn.functional.normalize(family.embed(model, theirs).float(), dim=-1)
    backbone = family.cut(model, family.trunk)
    last = backbone(ours)
    actual = backbone.readout(last.residual, last.head_outputs, torch.ones(1, backbone.heads))
    error = float((actual - expected).abs().max())
    if not error < _SELF_CHECK_TOLERANCE:
        raise ModelError(
            f"self-check failed: our readout differs from the model's own embedding by {error:.2g} "
            f"(allowed {_SELF_CHECK_TOLERANCE:g}) with transformers {transformers.__version__}; refusing to serve it"
        )
    log.info("self-check: readout equals the model's own embedding to %.1e", error)
    return backbone, expected[0].numpy()
