"""A small picture in every orientation, and what becomes of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.images import decode_upright, load_image, open_header

# 3x2 pixels, all different, none symmetric.
STORED = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [0, 255, 255], [255, 0, 255]]], dtype=np.uint8
)
# EXIF 2.3, tag 0x0112: where the stored row 0 and column 0 belong in the picture.
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: np.rot90(STORED, -1),
    7: np.rot90(STORED, 2).transpose(1, 0, 2),
    8: np.rot90(STORED),
}


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(orientation: int, format: str, scale: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.kron(STORED, np.ones((scale, scale, 1), dtype=np.uint8))
    return encode(Image.fromarray(stored), format, exif=exif, **options)


def pixels(data: bytes) -> np.ndarray:
    image = decode_upright(data)
    assert image.mode == "RGB"
    assert (image.width, image.height) == open_header(data)[:2]
    return np.asarray(image)


def error_of(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    return str(caught.value)
