"""What a checkpoint's image processor does to pixels, and how far we do the same.

The numbers are read off transformers' own processor, so that its class's defaults count, and load compares what it
makes of a picture with what we make of it. One thing we do otherwise on purpose: the whole image is squashed to the
model's square, where a processor may crop its centre, for a crop would cut prompts off.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from PIL import Image
from torch import Tensor

from phs_milvus.contract.errors import ModelError
from phs_server.model.folder import json_object

FILE = "preprocessor_config.json"
# transformers' image processors have no useful static type.
Processor = Any
# One number per RGB channel.
Triple = tuple[float, float, float]

# The processor of a family whose file names none, as transformers' AutoImageProcessor has it.
_PROCESSOR_OF = {
    "clip_vision_model": "CLIPImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "siglip2_vision_model": "Siglip2ImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "vit": "ViTImageProcessor",
}
# DINOv3's processor needs torchvision; it is ViT's with these defaults.
_DINOV3_DEFAULTS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
_SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad")
_LARGEST_SIDE = 4096
# Between our model input and the processor's: rounding is below 1e-5, one level of 255 is above 4e-3.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become model input: RGB resized to a square without a crop, then (x / 255 - mean) / std.

    Its fields are part of a model's fingerprint.

    Attributes:
        image_size: pixels, a multiple of patch_size.
        patch_size: pixels.
        resample: a PIL.Image.Resampling number.
        mean, std: per RGB channel, on the 0..1 scale.
    """

    image_size: int
    patch_size: int
    resample: int
    mean: Triple
    std: Triple

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    def squashed(self, picture: Image.Image) -> npt.NDArray[np.uint8]:
        """An RGB picture at the model's size: uint8 [3, S, S]."""
        resized = picture.resize((self.image_size, self.image_size), Image.Resampling(self.resample))
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def normalised(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [3, S, S] -> float32 [1, 3, S, S]."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return ((torch.from_numpy(pixels) / 255 - mean) / std).unsqueeze(0)


class ProcessorReader:
    """transformers' image processor of a checkpoint, and what of it we can honour.

    Args:
        model_id: as given to `checkpoint.load`.
        model_type: a key of `backbone.FAMILIES`.

    Raises:
        ModelError: no file, or one that transformers cannot read.
    """

    def __init__(self, model_id: str, model_type: str) -> None:
        self._model_id = model_id
        self.numbers = self._read()
        self.processor = self._make(model_type)
        self.kind = type(self.processor).__name__.removesuffix("Pil")
        for name in _SWITCHES:
            if not isinstance(self._value(name), (bool, type(None))):
                raise self._refusal(name, "use true or false")

    def preprocessing(self, model_type: str, config: transformers.PretrainedConfig, side: int | None) -> Preprocessing:
        """What we do in its place.

        Args:
            side: of the model's input in pixels; None: what the processor says.

        Raises:
            ModelError: a field that we cannot honour, or a side that is no multiple of the patch size.
        """
        patch = config.patch_size
        if side is None and model_type == "siglip2_vision_model":
            side = int(config.num_patches**0.5) * patch
        size = self._side(config) if side is None else side
        if size > _LARGEST_SIDE:
            raise ModelError(f"image size {size} of model '{self._model_id}' is above {_LARGEST_SIDE}, the most taken")
        if size < patch or size % patch:
            near = max(1, round(size / patch)) * patch
            raise ModelError(
                f"image size {size} is not a multiple of the model's patch size {patch}; use {near} for example"
            )
        if self._value("do_pad"):
            raise self._refusal("do_pad", "padding of pictures is not supported")
        mean, std = self._mean_and_std()
        return Preprocessing(size, patch, self._resample(), mean, std)

    def deviation(self, size: int) -> str | None:
        """In what way its pictures differ from ours on purpose; None where they do not."""
        how = f"here the whole picture is resized to {size} x {size}, since a crop would cut prompts off"
        if hasattr(self.processor, "max_num_patches"):
            return f"{self.kind} keeps a picture's proportions; {how}"
        if not self._value("do_resize"):
            return f"{self.kind} does not resize; {how}"
        if self._value("do_center_crop"):
            return f"{self.kind} crops the centre of a picture; {how}"
        if not (self._size("size").get("height") and self._size("size").get("width")):
            return f"{self.kind} does not resize to a square; {how}"
        return None

    def model_input(self, picture: Image.Image, shape: Preprocessing) -> Tensor:
        """What transformers' processor makes of an RGB picture: float32 [1, 3, S, S].

        The picture must have the model's size already where there is a deviation: resizing is then left out.

        Raises:
            ModelError: it fails, or gives another shape.
        """
        side = shape.image_size
        options: dict[str, Any] = {"size": {"height": side, "width": side}}
        if hasattr(self.processor, "max_num_patches"):
            options = {"max_num_patches": shape.grid**2, "patch_size": shape.patch_size}
        elif self.deviation(side):
            options = {"do_resize": False, "do_center_crop": False}
        try:
            values = self.processor(picture, return_tensors="pt", **options)["pixel_values"].float()
        except Exception as error:  # whatever an odd field leads to, deep in transformers
            raise ModelError(
                f"{FILE} of model '{self._model_id}': transformers' {self.kind} fails with it ({first_line(error)})"
            ) from error
        if values.ndim == 3:  # patches of Siglip2: [1, N, p * p * 3]
            patches = values.unflatten(2, (shape.patch_size, shape.patch_size, 3)).unflatten(1, (shape.grid, -1))
            values = patches.permute(0, 5, 1, 3, 2, 4).reshape(1, 3, side, -1)
        if values.shape != (1, 3, side, side):
            raise ModelError(
                f"{FILE} of model '{self._model_id}': transformers' {self.kind} makes input of shape "
                f"{list(values.shape[2:])}; only {side} x {side} can be served"
            )
        return values

    def check(self, ours: Tensor, theirs: Tensor) -> None:
        """Raises ModelError where two model inputs [1, 3, S, S] of one picture differ."""
        difference = float((ours - theirs).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(theirs.abs().max())):
            unknown = [name for name, value in self.numbers.items() if value and name not in _SWITCHES]
            named = [name for name in unknown if name.startswith("do_") and name != "do_convert_rgb"]
            raise ModelError(
                f"self-check failed: transformers' {self.kind} makes other pixels of a picture than {FILE} of model "
                f"'{self._model_id}' tells us, by up to {difference:.2g}; refusing to serve it"
                + (f" (unknown: {', '.join(named)[:80]})" if named else "")
            )

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any]:
        folder = Path(self._model_id)
        if self._model_id and (folder / FILE).exists():
            json_object(folder, FILE)
        try:
            mixin = transformers.image_processing_base.ImageProcessingMixin
            numbers, _ = mixin.get_image_processor_dict(self._model_id)
        except OSError as error:
            raise ModelError(
                f"model '{self._model_id}' has no {FILE}, which says how images are resized and normalised; "
                f"copy it next to config.json ({first_line(error)})"
            ) from error
        except Exception as error:
            raise ModelError(f"{FILE} of model '{self._model_id}' cannot be read: {first_line(error)}") from error
        if not isinstance(numbers, dict):
            raise ModelError(f"{FILE} of model '{self._model_id}' is a {type(numbers).__name__}, not an object")
        return numbers

    def _make(self, model_type: str) -> Processor:
        name = self.numbers.get("image_processor_type") or self.numbers.get("feature_extractor_type")
        name = name or _PROCESSOR_OF[model_type]
        numbers = {key: value for key, value in self.numbers.items() if key != "image_processor_type"}
        name = str(name).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if name == "DINOv3ViTImageProcessor":
            name, numbers = "ViTImageProcessor", _DINOV3_DEFAULTS | numbers
        found = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None)
        if not name.endswith("ImageProcessor") or found is None or getattr(found, "is_dummy", False):
            raise self._refusal("image_processor_type", "transformers has no such image processor here")
        try:
            return found.from_dict(numbers)
        except Exception as error:
            raise ModelError(
                f"{FILE} of model '{self._model_id}': transformers' {name} cannot be made of it ({first_line(error)})"
            ) from error

    def _side(self, config: transformers.PretrainedConfig) -> int:
        """Of the square that the processor makes."""
        if self._value("do_center_crop"):
            side = self._square("crop_size")
            shortest = self._size("size").get("shortest_edge") or min(self._size("size").values(), default=side)
            if self._value("do_resize") and shortest < side:
                raise self._refusal("crop_size", f"it is larger than size, {shortest}, so that pictures are padded")
            return side
        if not self._value("do_resize") and not self._size("size"):
            return config.image_size
        return self._square("size")

    def _square(self, field: str) -> int:
        size = self._size(field)
        sides = {value for key, value in size.items() if key in ("height", "width", "shortest_edge")}
        if not sides:
            raise self._refusal(field, "it names no height and width; pass --image-size")
        if len(sides) > 1:
            raise self._refusal(field, "only square input can be served; pass --image-size to squash to a square")
        return sides.pop()

    def _size(self, field: str) -> dict[str, int]:
        """Its keys that are set."""
        value = self._value(field)
        size = {key: side for key, side in dict(value or {}).items() if side is not None}
        if not all(isinstance(side, int) and side > 0 for side in size.values()):
            raise self._refusal(field, "use whole numbers of pixels")
        return size

    def _mean_and_std(self) -> tuple[Triple, Triple]:
        """On the 0..1 scale: the rescaling, or none, is part of them."""
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if self._value("do_normalize"):
            mean, std = self._channels("image_mean"), self._channels("image_std")
            if not all(value > 0 for value in std):
                raise self._refusal("image_std", "use numbers above 0")
        factor = self._value("rescale_factor") if self._value("do_rescale") else 1.0
        if not _is_number(factor) or not factor > 0:
            raise self._refusal("rescale_factor", "use a number above 0, as a rule 1/255")
        if math.isclose(255 * factor, 1.0, rel_tol=1e-6):
            return mean, std
        scale = 255 * factor
        return _divided(mean, scale), _divided(std, scale)

    def _channels(self, field: str) -> Triple:
        values = self._value(field)
        values = (values,) * 3 if _is_number(values) else values
        if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(map(_is_number, values)):
            raise self._refusal(field, "use three numbers, one per channel")
        red, green, blue = map(float, values)
        return red, green, blue

    def _resample(self) -> int:
        value = self._value("resample")
        if isinstance(value, bool) or not isinstance(value, int) or value not in list(Image.Resampling):
            raise self._refusal("resample", "use a number of PIL.Image.Resampling, for example 3 for bicubic")
        return int(value)

    def _value(self, field: str) -> Any:
        return getattr(self.processor, field, None) if hasattr(self, "processor") else None

    def _refusal(self, field: str, remedy: str) -> ModelError:
        value = self.numbers[field] if field in self.numbers else self._value(field)
        shown = json.dumps(value, default=str)[:60]
        return ModelError(f"{FILE} of model '{self._model_id}': {field} is {shown}; {remedy}")


def _divided(values: Triple, scale: float) -> Triple:
    return values[0] / scale, values[1] / scale, values[2] / scale


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def first_line(error: Exception) -> str:
    """What an error says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
