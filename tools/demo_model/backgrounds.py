"""Procedural backgrounds: multi-octave noise through colour palettes, horizons, planks, clutter.

Every random draw has a shape that does not depend on the output size, so one seed gives the same
picture at 128 px (training) and at 352 px (the shipped scenes), up to resampling.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

# Colour ramps from dark to light, RGB. Muted on purpose: the objects are the bright things.
PALETTES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "grass": ((58, 92, 44), (104, 146, 70), (156, 186, 104)),
    "sand": ((168, 138, 96), (212, 186, 140), (238, 222, 188)),
    "sky": ((96, 152, 206), (150, 196, 232), (236, 244, 250)),
    "dusk": ((70, 62, 112), (196, 122, 132), (250, 206, 160)),
    "sea": ((24, 82, 110), (52, 132, 154), (150, 206, 208)),
    "stone": ((92, 92, 96), (140, 140, 142), (190, 188, 184)),
    "soil": ((66, 48, 36), (110, 82, 60), (158, 124, 92)),
    "snow": ((186, 202, 220), (222, 232, 242), (250, 252, 255)),
    "paper": ((214, 204, 186), (236, 228, 212), (250, 246, 238)),
    "felt": ((52, 70, 104), (78, 98, 138), (118, 136, 170)),
    "rose": ((176, 120, 128), (216, 168, 170), (244, 218, 214)),
    "mint": ((112, 160, 146), (162, 204, 188), (214, 238, 226)),
    "night": ((16, 22, 44), (32, 42, 76), (70, 84, 124)),
    "wood": ((104, 66, 38), (156, 108, 66), (204, 160, 112)),
    "leaf": ((32, 58, 38), (62, 100, 58), (128, 150, 82)),
}
GROUND = ("grass", "sand", "soil", "snow", "stone", "sea", "leaf")
SKY = ("sky", "dusk", "snow", "night", "rose", "mint")


def noise(rng: np.random.Generator, size: int, aspect: float, octaves: int) -> np.ndarray:
    """Multi-octave value noise, float32 [size, size], roughly in [0, 1].

    `aspect` stretches it sideways (> 1), which reads as wood grain, water or strata.
    """
    total = np.zeros((size, size), np.float32)
    decay = rng.uniform(0.45, 0.7)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        rows = 3 * 2**octave
        cols = max(2, round(rows / aspect))
        grid = rng.random((rows + 1, cols + 1), dtype=np.float32)
        field = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        total += weight * np.asarray(field)
        norm += weight
        weight *= decay
    # Averaging octaves pulls values to the middle: stretch them back over the palette.
    return np.clip((total / norm - 0.5) * 1.7 + 0.5, 0.0, 1.0)


def colourise(field: np.ndarray, palette: str, rng: np.random.Generator) -> np.ndarray:
    """Field in [0, 1], [H, W] -> RGB float32 [H, W, 3] in 0..255, with a jittered palette."""
    ramp = np.array(PALETTES[palette], np.float32) + rng.normal(0, 7, (3, 3))
    ramp = ramp * rng.uniform(0.88, 1.1)
    stops = np.linspace(0, 1, 3)
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, ramp[:, c]) for c in range(3)], 1)
    return table.astype(np.float32)[(field * 255).astype(np.uint8)]


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    palette = str(rng.choice(list(PALETTES)))
    aspect = 1.0 if rng.random() < 0.7 else rng.uniform(2, 5)
    field = noise(rng, size, aspect, int(rng.integers(3, 7)))
    contrast = rng.uniform(0.4, 1.0)
    return colourise((field - 0.5) * contrast + rng.uniform(0.4, 0.6), palette, rng)


def _landscape(rng: np.random.Generator, size: int) -> np.ndarray:
    """Sky over ground, with a wavy horizon and clouds that are noise too."""
    ys = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    clouds = noise(rng, size, rng.uniform(1.5, 3), 4)
    sky = colourise(np.clip(0.55 * ys + 0.5 * clouds, 0, 1), str(rng.choice(SKY)), rng)
    texture = noise(rng, size, rng.uniform(1, 3), 5)
    ground = colourise(0.15 + 0.7 * texture, str(rng.choice(GROUND)), rng)
    hills = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, 7), rng.normal(0, 0.03, 7))
    horizon = (rng.uniform(0.25, 0.6) + hills.astype(np.float32))[None, :]
    below = np.clip((ys - horizon) * size / 2, 0, 1)[..., None]
    return sky * (1 - below) + ground * below


def _planks(rng: np.random.Generator, size: int) -> np.ndarray:
    """A table top: boards of slightly different brightness with dark seams and grain."""
    count = int(rng.integers(4, 8))
    grain = noise(rng, size, rng.uniform(5, 9), 5)
    position = np.linspace(0, count, size, endpoint=False)
    tone = rng.uniform(0.82, 1.08, count + 1).astype(np.float32)[position.astype(int)]
    seam = np.abs(position - np.round(position)) < count / 180
    palette = str(rng.choice(["wood", "wood", "stone", "paper", "felt"]))
    board = colourise(0.2 + 0.6 * grain, palette, rng)
    board *= (tone * np.where(seam, 0.7, 1.0).astype(np.float32))[:, None, None]
    return board.transpose(1, 0, 2) if rng.random() < 0.5 else board


def _cloth(rng: np.random.Generator, size: int) -> np.ndarray:
    """A woven or chequered cloth, or tiles: two soft tones in a rotated grid."""
    count, angle = rng.uniform(3, 9), rng.uniform(0, np.pi)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size
    u = count * (np.cos(angle) * xs + np.sin(angle) * ys) * np.pi
    v = count * (-np.sin(angle) * xs + np.cos(angle) * ys) * np.pi
    sharp = rng.uniform(2, 12)
    waves = (np.tanh(sharp * np.sin(u)), np.tanh(sharp * np.sin(v)))
    style = rng.integers(3)
    grid = waves[0] * waves[1] if style == 0 else waves[0] + waves[1] if style == 1 else waves[0]
    fine = noise(rng, size, 1.0, 5) - 0.5
    field = np.clip(0.5 + rng.uniform(0.08, 0.22) * grid + 0.35 * fine, 0, 1)
    return colourise(field, str(rng.choice(list(PALETTES))), rng)


def _bokeh(rng: np.random.Generator, size: int) -> np.ndarray:
    """Out-of-focus lights over a gradient."""
    base = colourise(noise(rng, size, 1.0, 2), str(rng.choice(list(PALETTES))), rng)
    low = 128  # drawn small, blurred and scaled up
    lights = np.zeros((low, low), np.float32)
    ys, xs = np.mgrid[0:low, 0:low].astype(np.float32)
    for x, y, r, level in rng.random((int(rng.integers(6, 18)), 4)):
        inside = 3 + 11 * r - np.hypot(xs - x * low, ys - y * low)
        lights = np.maximum(lights, np.clip(inside + 0.5, 0, 1) * (25 + 60 * level))
    lights = np.asarray(Image.fromarray(lights).resize((size, size), Image.Resampling.BICUBIC))
    return base + lights[..., None] * np.array([1.0, 0.95, 0.8], np.float32)


KINDS = (_texture, _landscape, _planks, _cloth, _bokeh)
SHARES = (0.34, 0.26, 0.16, 0.14, 0.10)


def _clutter(rng: np.random.Generator, image: Image.Image) -> None:
    """Leaves, pebbles, blades and confetti: muted little shapes that are no category."""
    size = image.width
    draw = ImageDraw.Draw(image, "RGBA")
    tint = rng.uniform(40, 225, 3)
    style = rng.integers(4)
    for x, y, r, turn, tone in rng.random((int(rng.integers(10, 60)), 5)):
        cx, cy, radius = x * size, y * size, (0.008 + 0.022 * r) * size
        red, green, blue = (int(np.clip(c + 50 * (tone - 0.5), 0, 255)) for c in tint)
        fill = (red, green, blue, 150)
        dx, dy = radius * np.cos(turn * 6.283), radius * np.sin(turn * 6.283)
        if style == 0:
            draw.ellipse((cx - radius, cy - 0.7 * radius, cx + radius, cy + 0.7 * radius), fill)
        elif style == 1:
            tips = ((cx - dx, cy - dy), (cx - dy / 2, cy + dx / 2), (cx + dx, cy + dy))
            draw.polygon((*tips, (cx + dy / 2, cy - dx / 2)), fill)
        elif style == 2:
            ends = (cx - 1.5 * dx, cy - 1.5 * dy, cx + 1.5 * dx, cy + 1.5 * dy)
            draw.line(ends, fill, max(1, round(size / 160)))
        else:
            draw.polygon(((cx - dx, cy - dy), (cx + dx, cy + dy), (cx - dy, cy + dx)), fill)


def background(rng: np.random.Generator, size: int) -> Image.Image:
    """A background of size x size pixels, RGB."""
    kind = KINDS[int(rng.choice(len(KINDS), p=SHARES))]
    image = Image.fromarray(np.clip(kind(rng, size), 0, 255).astype(np.uint8))
    if rng.random() < 0.45:
        _clutter(rng, image)
    return image
