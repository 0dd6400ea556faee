"""What a checkpoint's image processor says is done as transformers does it, or refused in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import transformers

from phs_milvus.contract.errors import ModelError
from phs_server.model import checkpoint
from phs_server.model.sample import sample_picture
from tests.checkpoints import save_checkpoint

HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("vit", "deit", "dinov2", "dinov3", "clip-full", "siglip-vision", "siglip2-vision")
    return {name: save_checkpoint(name, tmp_path_factory.mktemp(name)) for name in names}


@pytest.fixture
def write(folders: dict[str, Path], tmp_path: Path):
    """write(family, processor): a directory of those weights with that preprocessor_config.json."""

    def write(family: str, processor: object, **config: object) -> Path:
        values = json.loads((folders[family] / "config.json").read_text()) | config
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
        (tmp_path / "model.safetensors").symlink_to(folders[family] / "model.safetensors")
        return tmp_path

    return write


SIZE = {"size": {"height": 64, "width": 64}}
VIT = {"image_processor_type": "ViTImageProcessor", **SIZE}
HONOURED = {
    "as saved": ("vit", VIT | HALF),
    "class defaults for what is not said": ("vit", VIT),
    "a number for the size": ("vit", VIT | {"size": 64}),
    "old name of the class": ("vit", {"feature_extractor_type": "ViTFeatureExtractor", **SIZE}),
    "torchvision's name of the class": ("vit", VIT | {"image_processor_type": "ViTImageProcessorFast"}),
    "no name of a class": ("vit", SIZE),
    "no normalising": ("vit", VIT | {"do_normalize": False}),
    "no rescaling, numbers of 0..255": (
        "vit",
        VIT | {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5], "image_std": [58.4, 57.1, 57.4]},
    ),
    "neither": ("vit", VIT | {"do_rescale": False, "do_normalize": False}),
    "to -1..1 by the factor": ("vit", VIT | {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}),
    "one number for all channels": ("vit", VIT | {"image_mean": 0.4, "image_std": 0.3}),
    "nearest": ("vit", VIT | {"resample": 0}),
    "dinov3 without torchvision": ("dinov3", {"image_processor_type": "DINOv3ViTImageProcessorFast", **SIZE}),
    "siglip": ("siglip-vision", {"image_processor_type": "SiglipImageProcessor", **SIZE}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HONOURED))
def test_input_is_what_transformers_makes(name: str, write) -> None:
    """Of a picture of another size, resizing included."""
    family, processor = HONOURED[name]
    folder = write(family, processor)
    shape = checkpoint.load(str(folder)).preprocessing
    picture = sample_picture(100, 80)
    if "dinov3" in name:
        mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
        pixels = np.asarray(picture.resize((64, 64), 2)).transpose(2, 0, 1)
        theirs = (pixels / 255 - mean) / std
    else:
        # Not AutoImageProcessor, which needs torchvision in some of the releases that we support.
        kind = transformers.SiglipImageProcessorPil if name == "siglip" else transformers.ViTImageProcessorPil
        theirs = kind.from_pretrained(folder)(picture)["pixel_values"][0]
    ours = shape.normalised(shape.squashed(picture)).numpy()[0]
    assert np.abs(ours - theirs).max() < 1e-4


CROPS = {
    # What transformers' class says where the file does not: CLIP and DINOv2 crop, DeiT crops 224 of 256.
    "clip": ("clip-full", {"crop_size": 64}, 64, "CLIPImageProcessor crops the centre"),
    "clip, told": ("clip-full", {"size": 80, "crop_size": {"height": 64, "width": 64}}, 64, "crops the centre"),
    "dinov2": ("dinov2", {"size": {"shortest_edge": 64}, "crop_size": 56}, 56, "BitImageProcessor crops"),
    "deit": ("deit", {}, 224, "DeiTImageProcessor crops"),
    "shortest edge": ("vit", VIT | {"size": {"shortest_edge": 64}}, 64, "does not resize to a square"),
    "no resizing": ("vit", VIT | {"do_resize": False}, 64, "does not resize"),
    "siglip2": ("siglip2-vision", {}, 64, "keeps a picture's proportions"),
    "crop_pct": ("vit", {"image_processor_type": "ConvNextImageProcessor", "size": 64}, 64, "to a square"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CROPS))
def test_what_we_do_otherwise_on_purpose_is_named(name: str, write, caplog: pytest.LogCaptureFixture) -> None:
    family, processor, side, named = CROPS[name]
    caplog.set_level(logging.INFO)
    loaded = checkpoint.load(str(write(family, processor)))
    assert loaded.preprocessing.image_size == side
    (line,) = [record.getMessage() for record in caplog.records if "prompts off" in record.getMessage()]
    assert named in line and f"resized to {side} x {side}" in line


REFUSED = {
    "224 x 336": (VIT | {"size": {"height": 64, "width": 96}}, "size is .*only square"),
    "no square crop": (VIT | {"do_center_crop": True, "crop_size": {"height": 64, "width": 32}}, "crop_size is"),
    "a crop of more than there is": (VIT | {"do_center_crop": True, "crop_size": 80}, "crop_size is 80; .*padded"),
    "longest edge": (VIT | {"size": {"longest_edge": 64}}, "size is .*no height and width"),
    "no such size": (VIT | {"size": {"side": 64}}, "cannot be made of it"),
    "half a pixel": (VIT | {"size": {"height": 64.5, "width": 64.5}}, "size is .*whole numbers"),
    "a huge size": (VIT | {"size": 16 * 10**8}, "image size 1600000000 .* above 4096"),
    "padding": (VIT | {"do_pad": True}, "do_pad is true"),
    "a switch that is text": (VIT | {"do_normalize": "no"}, 'do_normalize is "no"; use true or false'),
    "resample null": (VIT | {"resample": None}, "resample is null"),
    "resample by name": (VIT | {"resample": "bicubic"}, 'resample is "bicubic"'),
    "resample unknown": (VIT | {"resample": 17}, "resample is 17"),
    "mean null": (VIT | {"image_mean": None}, "image_mean is null"),
    "one mean": (VIT | {"image_mean": [0.5]}, r"image_mean is \[0.5\]; use three numbers"),
    "mean NaN": (VIT | {"image_mean": float("nan")}, "image_mean is NaN"),
    "std zero": (VIT | {"image_std": [0.5, 0.5, 0]}, "image_std is .* above 0"),
    "factor zero": (VIT | {"rescale_factor": 0}, "rescale_factor is 0"),
    "factor text": (VIT | {"rescale_factor": "1/255"}, 'rescale_factor is "1/255"'),
    "another order of channels": (
        {"image_processor_type": "MobileViTImageProcessor", **SIZE, "crop_size": 64, "do_flip_channel_order": True},
        "makes other pixels .*do_flip_channel_order",
    ),
    "unknown class": (VIT | {"image_processor_type": "MyImageProcessor"}, 'image_processor_type is "MyImageProcessor"'),
    "no image processor": (VIT | {"image_processor_type": "AutoModel"}, 'image_processor_type is "AutoModel"'),
    "class is a list": (VIT | {"image_processor_type": ["a"]}, "image_processor_type is"),
    "a list": ([], "preprocessor_config.json of .* is a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_honoured_is_refused_in_one_line(name: str, write) -> None:
    processor, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as error:
        checkpoint.load(str(write("vit", processor)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert "preprocessor_config.json" in str(error.value) or "image size" in str(error.value)


def test_a_size_of_ones_own_overrules_a_processor_without_a_square(write) -> None:
    folder = write("vit", VIT | {"size": {"height": 64, "width": 96}})
    assert checkpoint.load(str(folder), image_size=96).preprocessing.image_size == 96


def test_a_patch_size_of_two_equal_numbers(write) -> None:
    assert checkpoint.load(str(write("vit", VIT, patch_size=[16, 16]))).preprocessing.patch_size == 16
