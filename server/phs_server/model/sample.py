"""A made picture for the self-checks: as smooth, as edged and as grainy as a photo, and the same on every machine."""

from __future__ import annotations

import numpy as np
from PIL import Image


def sample_picture(width: int, height: int) -> Image.Image:
    """RGB: a sky over a textured ground, and a lit ball with its shadow."""
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    sky = np.stack([0.35 + 0.4 * y, 0.5 + 0.35 * y, 0.85 - 0.1 * y], axis=-1)
    waves = 0.5 + 0.25 * np.sin(37 * x + 11 * y) + 0.2 * np.sin(23 * y * (1 + x))
    ground = np.stack([0.45 * waves, 0.55 * waves, 0.2 * waves], axis=-1)
    picture = np.where((y > 0.6 + 0.05 * np.sin(9 * x))[..., None], ground, sky)
    picture[(x - 0.62) ** 2 / 0.05 + (y - 0.85) ** 2 / 0.004 < 1] *= 0.5
    inside = (x - 0.55) ** 2 + (y - 0.6) ** 2
    light = 1 - 1.6 * np.hypot(x - 0.48, y - 0.5)
    picture = np.where((inside < 0.05)[..., None], light[..., None] * [0.95, 0.35, 0.15], picture)
    grain = np.random.default_rng(0).integers(-6, 7, picture.shape)
    return Image.fromarray((np.round(255 * picture) + grain).clip(0, 255).astype(np.uint8))
