"""A model directory before anything of it is loaded: what people bring that is none, each told in one line.

Only headers are read here, so that a wrong directory costs neither time nor memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from phs_milvus.contract.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_MOST_JSON = 64 * 2**20
_MOST_OF_ANY = 10**6
# Numbers that may be missing from any weights without harm.
_SMALL = 2**24
# Weights in formats that are not read here, some of which run code when they are.
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.safetensors")


def check_config(folder: Path) -> None:
    """Looks at config.json.

    Raises:
        ModelError: what stands in for it here, and what to do.
    """
    config = json_object(folder, "config.json")
    if "model_type" not in config and ("architecture" in config or "pretrained_cfg" in config):
        name = str(config.get("architecture", ""))[:60]
        raise ModelError(
            f"model '{folder}' is in timm format, not transformers' (config.json has architecture '{name}'); use the "
            "same model's transformers checkpoint, for example facebook/dinov2-base"
        )
    if "model_type" not in config:
        raise ModelError(f"config.json of model '{folder}' has no model_type, so it is not a transformers checkpoint")


def count_weights(folder: Path) -> int:
    """How many numbers the weights hold, from their headers.

    Raises:
        ModelError: what stands in for them here, and what to do.
    """
    return sum(_count(folder, name) for name in _weight_files(folder))


def check_counts(config: dict[str, Any], model_id: str) -> None:
    """Refuses counts that no model has: some of transformers' configurations list their layers when they are made.

    Args:
        config: of config.json, as it is.

    Raises:
        ModelError: a field of it, or of its parts, that is too large.
    """
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for field, value in part.items():
            least = 1 if field in ("num_hidden_layers", "num_attention_heads") else 0
            if field.startswith("num_") and isinstance(value, (int, float)) and not least <= value <= _MOST_OF_ANY:
                raise _odd(field, value, f"no model has so {'few' if value < least else 'many'}", model_id)


def check_sizes(config: Any, numbers: int, model_id: str) -> None:
    """Refuses a configuration of a model that is larger than its weights, before it is built.

    Args:
        config: of the vision model.
        numbers: that the weights hold.

    Raises:
        ModelError: a field that is no count, or too large for the weights at hand.
    """
    width = _count_field(config, "hidden_size", model_id)
    layers = _count_field(config, "num_hidden_layers", model_id)
    heads = _count_field(config, "num_attention_heads", model_id)
    patch = _count_field(config, "patch_size", model_id)
    if width % heads:
        raise _odd("num_attention_heads", heads, f"hidden_size {width} is no multiple of it", model_id)
    if getattr(config, "num_channels", 3) != 3:
        raise _odd("num_channels", config.num_channels, "only models of RGB pictures can be served", model_id)
    needed = {
        "hidden_size": width**2,
        "patch_size": 3 * width * patch**2,
        "num_hidden_layers": layers * 4 * width**2,
    }
    # What one of a field takes, where the model has that field.
    for field, each in (
        ("intermediate_size", layers * 2 * width),
        ("mlp_ratio", layers * 2 * width**2),
        ("num_patches", width),
    ):
        if hasattr(config, field):
            needed[field] = each * _count_field(config, field, model_id)
    if hasattr(config, "image_size") and config.model_type != "dinov3_vit":  # which has no position embeddings
        needed["image_size"] = width * (_count_field(config, "image_size", model_id) // patch) ** 2
    for field in ("num_register_tokens", "projection_dim"):  # some weights lack the projection
        needed[field] = max(0, width * int(getattr(config, field, 0) or 0) - _SMALL)
    for field, least in needed.items():
        if least > numbers:
            raise _odd(field, getattr(config, field), f"its weights hold {numbers} numbers, too few for that", model_id)


def _weight_files(folder: Path) -> list[str]:
    if not _exists(folder, INDEX) or _exists(folder, WEIGHTS):
        if not _exists(folder, WEIGHTS):
            raise _no_weights(folder)
        return [WEIGHTS]
    shards = json_object(folder, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{INDEX} of model '{folder}' has no weight_map of tensor names to files")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name or not _exists(folder, name):
            raise ModelError(f"model '{folder}' lacks {name[:80]}, which {INDEX} names; copy all of its files")
    return names


def _no_weights(folder: Path) -> ModelError:
    others = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)})
    if not others:
        return ModelError(f"model '{folder}' has no {WEIGHTS}; copy it next to config.json")
    found = f"model '{folder}' has {', '.join(others)[:80]} but no {WEIGHTS}"
    if any(name.endswith(".safetensors") for name in others):
        return ModelError(f"{found} and no {INDEX}; give the file that name, or copy the index")
    return ModelError(
        f"{found}; other formats can run code and are not loaded. Convert to safetensors if you trust the file: python "
        f"-c \"from transformers import AutoModel as A; A.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _count(folder: Path, name: str) -> int:
    """Numbers that a safetensors file holds, from its header."""
    _check_file(folder, name)
    try:
        with safe_open(folder / name, "np") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"cannot load {name} of model '{folder}': it is no complete safetensors file ({str(error)[:80]}); "
            "copy it again"
        ) from error


def json_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file's settings.

    Raises:
        ModelError: it is missing, is no file, or holds something else.
    """
    _check_file(folder, name)
    path = folder / name
    if path.stat().st_size > _MOST_JSON:
        raise ModelError(f"{name} of model '{folder}' has {path.stat().st_size} bytes; it cannot be one")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} of model '{folder}' is not JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} of model '{folder}' is a {type(value).__name__}, not an object of settings")
    return value


def _check_file(folder: Path, name: str) -> None:
    path = folder / name
    if not _exists(folder, name):
        raise ModelError(
            f"cannot load the model in directory '{folder}': it has no {name}; it must hold config.json, {WEIGHTS} and "
            "preprocessor_config.json"
        )
    if not path.is_file():
        raise ModelError(f"{name} of model '{folder}' is not a file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{name} of model '{folder}' cannot be read: {error.strerror}") from error
    if start == _LFS_POINTER:
        raise ModelError(f"{name} of model '{folder}' is a Git LFS pointer, not the file itself; run: git lfs pull")
    if not start:
        raise ModelError(f"{name} of model '{folder}' is empty; copy it again")


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_symlink() or (folder / name).exists()


def _count_field(config: Any, field: str, model_id: str) -> int:
    value = getattr(config, field, None)
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]  # [height, width]
        setattr(config, field, value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _odd(field, value, "use a whole number from 1", model_id)
    return value


def _odd(field: str, value: object, remedy: str, model_id: str) -> ModelError:
    return ModelError(f"config.json of model '{model_id}': {field} is {json.dumps(value, default=str)[:60]}; {remedy}")
