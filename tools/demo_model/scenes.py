"""Procedural scenes of 3-6 emoji objects with exact ground truth, deterministic by seed.

    python -m tools.demo_model.scenes OUT_DIR      writes the shipped scenes and scenes.json

Glyphs are drawn from Noto Color Emoji (SIL Open Font License 1.1; Debian package
fonts-noto-color-emoji). Everything about a scene is drawn in relative units, so one seed gives the
same scene at any size.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.demo_model.backgrounds import background
from tools.demo_model.categories import CATEGORIES, NAMES

FONT = os.environ.get("NOTO_EMOJI", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE = 109  # the one size of the bitmap font

# Disjoint seeds: nothing that is shipped, reported or used to choose was ever trained on.
TRAIN_SEEDS = range(1_000_000, 1_000_000_000)
SHIPPED_SEEDS = range(600)
SELECTION_SEEDS = range(100_000, 101_500)
REPORT_SEEDS = range(200_000, 201_500)

SHIPPED_SIZE = 352
MIN_VISIBLE = 0.4  # an object hidden more than this is moved, or left out
SPRITE = 160  # sprite side in pixels; the glyph fills at most 136 of it
GLYPH_SHARE = 136 / SPRITE


@dataclass(frozen=True)
class SceneObject:
    """One object: its category, the box and mask of its visible part, and how much that is."""

    label: str
    glyph: str
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive
    mask: np.ndarray  # bool [H, W]
    visible: float  # visible area / whole area inside the frame and out


@dataclass(frozen=True)
class Scene:
    """A rendered scene, objects from back to front."""

    seed: int
    image: Image.Image  # RGB
    objects: tuple[SceneObject, ...]


@cache
def _sprites(glyph: str) -> tuple[Image.Image, ...]:
    """The glyph centred in a square, RGBA, at 160, 80 and 40 px (a mip chain)."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    drawn = Image.new("RGBA", (SPRITE, SPRITE))
    ImageDraw.Draw(drawn).text((8, 8), glyph, font=font, embedded_color=True)
    drawn = drawn.crop(drawn.getbbox())
    full = Image.new("RGBA", (SPRITE, SPRITE))
    full.paste(drawn, ((SPRITE - drawn.width) // 2, (SPRITE - drawn.height) // 2))
    return (full, full.reduce(2), full.reduce(4))


def _pose(rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Forward 2x2 map of the sprite (turn, squash, shear, flip) and two perspective terms."""
    angle = math.radians(float(np.clip(rng.normal(0, 17), -45, 45)))
    cos, sin = math.cos(angle), math.sin(angle)
    squash = np.diag([rng.uniform(0.78, 1.1), rng.uniform(0.85, 1.1)])
    shear = np.array([[1, rng.normal(0, 0.1)], [0, 1]])
    flip = np.diag([1.0 if rng.random() < 0.5 else -1.0, 1.0])
    turn = np.array([[cos, -sin], [sin, cos]])
    return turn @ shear @ squash @ flip, rng.normal(0, 0.12), rng.normal(0, 0.12)


def _warp(glyph: str, pose: tuple[np.ndarray, float, float], side: int) -> Image.Image:
    """The glyph in its pose, RGBA, `side` px square, the glyph about 1/1.4 of it."""
    matrix, px, py = pose
    scale = side / 1.4 / GLYPH_SHARE  # px the whole sprite square takes in the output
    level = next(s for s in reversed(_sprites(glyph)) if s.width >= scale or s.width == SPRITE)
    inverse = np.linalg.inv(matrix) * (level.width / scale)
    half, centre = side / 2, level.width / 2
    g, h = px / half, py / half
    # Output (x, y) -> sprite: centre + inverse (p - half) / (1 + g (x - half) + h (y - half)).
    at_origin = 1 - (g + h) * half
    rows = [(*r, -(r[0] + r[1]) * half) for r in inverse]
    coefficients = [
        value / at_origin for r in rows for value in (r[0] + centre * g, r[1] + centre * h, r[2] + centre * at_origin)
    ]
    return level.transform(
        (side, side),
        Image.Transform.PERSPECTIVE,
        (*coefficients, g / at_origin, h / at_origin),
        Image.Resampling.BICUBIC,
    )


def _colours(rng: np.random.Generator) -> tuple[float, ...]:
    """A 3x4 colour matrix: hue turn, saturation and brightness of one instance."""
    hue = rng.normal(0, 0.25) if rng.random() < 0.75 else rng.uniform(-math.pi, math.pi)
    saturation = rng.uniform(0.6, 1.15) if rng.random() < 0.9 else rng.uniform(0.0, 0.3)
    gain, lift = rng.uniform(0.78, 1.08), rng.uniform(-6, 16)
    cos, sin, root = math.cos(hue), math.sin(hue), math.sqrt(1 / 3)
    # Rotation about the grey axis, blended with the grey projection for saturation.
    turn = np.full((3, 3), (1 - cos) / 3) + cos * np.eye(3)
    turn += sin * root * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    matrix = saturation * turn + (1 - saturation) * np.full((3, 3), 1 / 3)
    return tuple(float(v) for row in matrix * gain for v in (*row, lift))


def _place(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres and sizes, [count, 3], relative to the frame; overlap allowed, burial avoided."""
    low, high = (0.45, 0.9) if count == 1 else (0.22, 0.55) if count < 5 else (0.22, 0.45)
    sizes = np.exp(rng.uniform(math.log(low), math.log(high), count))
    sizes = np.sort(sizes)[::-1] if rng.random() < 0.7 else sizes  # small ones mostly in front
    placed: list[tuple[float, float, float]] = []
    for size in sizes:
        edge = 0.42 * size
        spots = rng.uniform(edge, 1 - edge, (40, 2))
        if placed:
            others = np.array(placed)
            gaps = np.hypot(*(spots[:, None] - others[None, :, :2]).transpose(2, 0, 1))
            clearance = (gaps / (0.5 * (size + others[None, :, 2]))).min(1)
            good = np.flatnonzero(clearance > 0.66)
            spot = spots[good[0] if len(good) else clearance.argmax()]
        else:
            spot = spots[0]
        placed.append((spot[0], spot[1], size))
    return np.array(placed)


def _light(rng: np.random.Generator, image: Image.Image, angle: float) -> Image.Image:
    """Light from `angle` (radians) with a warm or cool tint, and a slight vignette."""
    size = image.width
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    slope = axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)
    distance = axis[None, :] ** 2 + axis[:, None] ** 2
    gain = 1 + rng.uniform(0.02, 0.2) * slope - rng.uniform(0, 0.12) * distance
    tint = 1 + rng.normal(0, 0.04, 3)
    gain = gain[..., None] * (tint * rng.uniform(0.88, 1.08)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(image) * gain, 0, 255).astype(np.uint8))


def render(seed: int, size: int, single: bool = False) -> Scene:
    """Scene number `seed`, size x size pixels; with one large object if `single`."""
    rng = np.random.default_rng(seed)
    image = background(rng, size)
    light = rng.uniform(0, 2 * math.pi)
    count = 1 if single else int(rng.integers(3, 7))
    # One category twice now and then, as in life; usually all different.
    kinds = rng.choice(len(NAMES), count, replace=bool(rng.random() < 0.1))
    shadow_strength = rng.uniform(0.25, 0.55)
    drawn: list[tuple[str, str, np.ndarray, int]] = []
    for kind, (x, y, extent) in zip(kinds, _place(rng, count), strict=True):
        label = NAMES[kind]
        glyph = str(rng.choice(list(CATEGORIES[label])))
        pose, colours, sticker = _pose(rng), _colours(rng), rng.random() < 0.12
        side = max(12, round(1.4 * extent * size))
        patch = _warp(glyph, pose, side)
        alpha = patch.getchannel("A")
        left, top = round(x * size - side / 2), round(y * size - side / 2)
        # The shadow falls away from the light; blurred at a quarter of the size, which is cheaper.
        small = alpha.resize((side // 3, side // 3), Image.Resampling.BOX)
        shadow = small.filter(ImageFilter.BoxBlur(max(1, side / 90)))
        shadow = shadow.resize((side, side), Image.Resampling.BILINEAR)
        shadow = shadow.point([int(v * shadow_strength) for v in range(256)])
        reach = 0.05 * extent * size
        offset = (left - round(reach * math.cos(light)), top - round(reach * math.sin(light)))
        image.paste((18, 16, 26), offset, shadow)
        colour = patch.convert("RGB").convert("RGB", colours)
        if sticker:
            alpha = alpha.filter(ImageFilter.MaxFilter(2 * max(1, round(side / 50)) + 1))
            image.paste((248, 246, 240), (left, top), alpha)
            image.paste(colour, (left, top), patch.getchannel("A"))
        else:
            image.paste(colour, (left, top), alpha)
        solid = np.asarray(alpha) > 127
        mask = np.zeros((size, size), bool)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
        mask[y0:y1, x0:x1] = solid[y0 - top : y1 - top, x0 - left : x1 - left]
        drawn.append((label, glyph, mask, int(solid.sum())))
    return Scene(seed, _light(rng, image, light), _visible(drawn))


def _visible(drawn: list[tuple[str, str, np.ndarray, int]]) -> tuple[SceneObject, ...]:
    """What can still be seen of each object, given those in front; nearly hidden ones dropped."""
    covered = np.zeros_like(drawn[0][2])
    objects = []
    for label, glyph, mask, whole in reversed(drawn):
        seen = mask & ~covered
        covered |= mask
        share = float(seen.sum()) / max(whole, 1)
        if share >= MIN_VISIBLE:
            ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
            objects.append(SceneObject(label, glyph, box, seen, share))
    return tuple(reversed(objects))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Row-major run lengths of a bool [H, W] mask, zeros first (the project's wire format)."""
    flat = np.concatenate([[False], mask.reshape(-1), [not mask.reshape(-1)[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges])).tolist()


def write_shipped(folder: Path, quality: int) -> None:
    """Renders the shipped scenes as WebP with their annotations in scenes.json."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in SHIPPED_SEEDS:
        scene = render(seed, SHIPPED_SIZE)
        name = f"scene_{seed:04d}.webp"
        scene.image.save(folder / name, quality=quality, method=6)
        objects = [
            {
                "label": item.label,
                "box": item.box,
                "visible": round(item.visible, 3),
                "mask": run_lengths(item.mask),
            }
            for item in scene.objects
        ]
        records.append({"file": name, "width": SHIPPED_SIZE, "height": SHIPPED_SIZE, "objects": objects})
    document = {
        "about": "Rendered scenes of Noto Color Emoji glyphs (SIL Open Font License 1.1).",
        "box": "x0,y0,x1,y1 of the visible part in pixels, x1 and y1 exclusive",
        "mask": "row-major run lengths of the visible part, zeros first",
        "categories": NAMES,
    }
    # One scene a line: small, and still readable in a diff.
    lines = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records)
    head = json.dumps(document, indent=1).removesuffix("\n}")
    (folder / "scenes.json").write_text(f'{head},\n "scenes": [\n{lines}\n]}}\n')


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the shipped demo scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quality", type=int, default=72, help="WebP quality")
    args = parser.parse_args()
    write_shipped(args.folder, args.quality)


if __name__ == "__main__":
    main()
