"""Hostile and odd requests, made from a seed, each with what the server must answer.

    python -m tests.hostile.make DIRECTORY [SEED]     # writes the images and manifest.json

An expectation is "accepted", or the field that INVALID_ARGUMENT must name ("image", "mask", "focus"). Images that are
only odd are accepted and encoded unless they break a limit: 1x1 pixels, strips 30,000 pixels long, CMYK, 16 bits,
animations (their first frame), garbage in metadata or behind the end. A flipped bit may or may not leave a picture:
"either" is accepted or "image", and never anything else.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.bombs import bombs
from tests.hostile.files import ACCEPTED, EITHER, SIZE, Case, chunk, every_format, picture, png, save

_MANY = 2**22 + 1


def make(seed: int = 0) -> list[Case]:
    """All cases; the same seed gives the same bytes under the same Pillow."""
    rng = np.random.default_rng(seed)
    files = every_format(rng)
    groups = (_truncated(files), _flipped(files, rng), _garbage(rng), bombs(files), _odd(rng), _not_images(rng))
    return [case for group in (*groups, _masks(files["jpeg"], rng)) for case in group]


def _truncated(files: dict[str, bytes]) -> Iterator[Case]:
    for form, data in files.items():
        for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
            # Pillow's JPEG 2000 and AVIF decoders accept files whose last part is missing.
            tolerant = form in ("jp2", "avif") and share > 0.02
            yield Case(f"{form}-first-{share:.0%}", data[: int(len(data) * share)], EITHER if tolerant else "image")
        yield Case(f"{form}-first-4-bytes", data[:4], "image")


def _flipped(files: dict[str, bytes], rng: np.random.Generator) -> Iterator[Case]:
    for form, data in files.items():
        for index in range(6):
            damaged = bytearray(data)
            for bit in rng.integers(0, 8 * len(data), 1 + 4 * index):
                damaged[bit // 8] ^= 1 << (bit % 8)
            yield Case(f"{form}-bits-flipped-{index}", bytes(damaged), EITHER)


def _garbage(rng: np.random.Generator) -> Iterator[Case]:
    magic = {
        "jpeg": b"\xff\xd8\xff",
        "png": b"\x89PNG\r\n\x1a\n",
        "webp": b"RIFF\x10\x00\x00\x00WEBP",
        "gif": b"GIF89a",
        "bmp": b"BM",
        "tiff": b"II*\0",
        "bigtiff": b"II+\0",
        "avif": b"\0\0\0\x20ftypavif",
        "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "j2k": b"\xff\x4f\xff\x51",
        "ppm": b"P6 ",
    }
    for form, start in magic.items():
        yield Case(f"{form}-signature-only", start, "image")
        yield Case(f"{form}-signature-then-zeros", start + bytes(500), "image")
        yield Case(f"{form}-signature-then-noise", start + rng.bytes(500), "image")


def _odd(rng: np.random.Generator) -> Iterator[Case]:
    """Valid, and to be accepted."""
    image = picture(rng)
    gray16 = Image.fromarray(rng.integers(0, 65536, (64, 96)).astype(np.uint16))
    transparent = image.convert("P")
    transparent.info["transparency"] = 0
    exif = Image.Exif()
    variants: dict[str, Callable[[], bytes]] = {
        "jpeg-cmyk": lambda: save(image.convert("CMYK"), "JPEG"),
        "jpeg-gray": lambda: save(image.convert("L"), "JPEG"),
        "jpeg-quality-1": lambda: save(image, "JPEG", quality=1),
        "jpeg-4:4:4": lambda: save(image, "JPEG", subsampling=0),
        "jpeg-restart-markers": lambda: save(image, "JPEG", restart_marker_blocks=1),
        "jpeg-long-comment": lambda: save(image, "JPEG", comment=b"x" * 65_000),
        "jpeg-garbage-icc": lambda: save(image, "JPEG", icc_profile=rng.bytes(100_000)),
        "png-16-bit-gray": lambda: save(gray16, "PNG"),
        "png-1-bit": lambda: save(image.convert("1"), "PNG"),
        "png-palette": lambda: save(image.convert("P"), "PNG"),
        "png-palette-transparent": lambda: save(transparent, "PNG"),
        "png-gray-alpha": lambda: save(image.convert("LA"), "PNG"),
        "png-rgba-all-transparent": lambda: save(Image.new("RGBA", SIZE), "PNG"),
        "png-animated": lambda: save(image, "PNG", save_all=True, append_images=[picture(rng) for _ in range(5)]),
        "png-garbage-icc": lambda: save(image, "PNG", icc_profile=rng.bytes(5000)),
        "webp-animated": lambda: save(image, "WEBP", save_all=True, append_images=[picture(rng)]),
        "webp-rgba": lambda: save(image.convert("RGBA"), "WEBP"),
        "gif-animated": lambda: save(
            image.convert("P"), "GIF", save_all=True, append_images=[picture(rng).convert("P")]
        ),
        "gif-interlaced": lambda: save(image.convert("P"), "GIF", interlace=1),
        "bmp-1-bit": lambda: save(image.convert("1"), "BMP"),
        "bmp-palette": lambda: save(image.convert("P"), "BMP"),
        "tiff-16-bit": lambda: save(gray16, "TIFF"),
        "tiff-cmyk": lambda: save(image.convert("CMYK"), "TIFF"),
        "tiff-lab": lambda: save(Image.new("LAB", SIZE, (90, 20, 20)), "TIFF"),
        "tiff-lzw": lambda: save(image, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": lambda: save(image, "TIFF", compression="jpeg"),
        "tiff-packbits": lambda: save(image, "TIFF", compression="packbits"),
        "tiff-fax": lambda: save(image.convert("1"), "TIFF", compression="group4"),
        "tiff-two-pages": lambda: save(image, "TIFF", save_all=True, append_images=[picture(rng)]),
        "tiff-big": lambda: save(image, "TIFF", big_tiff=True),
        "pgm": lambda: save(image.convert("L"), "PPM"),
        "pgm-16-bit": lambda: save(gray16, "PPM"),
        "pbm": lambda: save(image.convert("1"), "PPM"),
        "ppm-text": lambda: b"P3\n# a comment\n2 1\n255\n255 0 0 0 0 255\n",
    }
    for name, build in variants.items():
        yield Case(name, build(), ACCEPTED)
    yield Case("tiff-float", save(image.convert("L").convert("F"), "TIFF"), "image")
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        yield Case(f"{form.lower()}-1x1", save(Image.new("RGB", (1, 1), "red"), form), ACCEPTED)
    for width, height in ((30_000, 1), (1, 30_000), (30_000, 40), (40, 30_000), (65_000, 2), (2, 65_000)):
        strip = picture(rng, (width, height))
        yield Case(f"jpeg-{width}x{height}", save(strip, "JPEG"), ACCEPTED)
        yield Case(f"png-{width}x{height}", save(strip, "PNG", compress_level=1), ACCEPTED)
    for orientation in (*range(10), 255, 65535):
        exif[0x0112] = orientation
        yield Case(f"jpeg-exif-orientation-{orientation}", save(image, "JPEG", exif=exif), ACCEPTED)
    for index, garbage in enumerate((b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", rng.bytes(300), b"\xff" * 60_000)):
        yield Case(f"jpeg-exif-garbage-{index}", save(image, "JPEG", exif=b"Exif\0\0" + garbage), ACCEPTED)
        yield Case(f"png-exif-garbage-{index}", png(16, 16, chunk(b"eXIf", garbage)), ACCEPTED)
    # An EXIF directory that points at itself.
    loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield Case("jpeg-exif-loop", save(image, "JPEG", exif=b"Exif\0\0" + loop), ACCEPTED)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("payload.txt"), "hello")  # without the time of day
    script = b"<script>alert(1)</script>"
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        data = save(image.convert("P") if form == "GIF" else image, form)
        yield Case(f"{form.lower()}-and-zip", data + archive.getvalue(), ACCEPTED)
        yield Case(f"{form.lower()}-and-html", data + script, ACCEPTED)
    yield Case("jpeg-html-in-comment", save(image, "JPEG", comment=script), ACCEPTED)


def _not_images(rng: np.random.Generator) -> Iterator[Case]:
    others = {
        "empty": b"",
        "one-zero": b"\0",
        "text": b"hello, world",
        "noise": rng.bytes(5000),
        "zeros": bytes(5000),
        "html": b"<!doctype html><img src=x>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "svg-entities": b"<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><svg>&b;</svg>",
        "pdf": b"%PDF-1.7\n%%EOF",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(w) (/tmp/x) file\n",
        "zip": b"PK\x05\x06" + bytes(18),
        "gzip": zlib.compress(b"x" * 1000, wbits=31),
        "pickle": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "elf": b"\x7fELF\x02\x01\x01" + bytes(60),
        "psd": b"8BPS\0\1" + bytes(40),
        "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x68\x04\0\0\x16\0\0\0",
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(40),
        "fits": b"SIMPLE  =                    T" + b" " * 50,
        "path": b"/etc/passwd",
        "url": b"http://127.0.0.1/x.jpg",
        "data-url": b"data:image/png;base64,iVBORw0KGgo=",
    }
    for name, data in others.items():
        yield Case(f"not-an-image-{name}", data, "image")


def _masks(image: bytes, rng: np.random.Generator) -> Iterator[Case]:
    width, height = SIZE
    area = width * height
    wrong: dict[str, tuple[int, int, tuple[int, ...]]] = {
        "0x0": (0, 0, ()),
        "0x0-with-runs": (0, 0, (area,)),
        "size-swapped": (height, width, (0, area)),
        "wider-by-one": (width + 1, height, (0, (width + 1) * height)),
        "lower-by-one": (width, height - 1, (0, width * (height - 1))),
        "huge": (2**32 - 1, 2**32 - 1, (0, 2**32 - 1)),
        "same-area-other-shape": (width * 2, height // 2, (0, area)),
        "no-runs": (width, height, ()),
        "one-pixel-short": (width, height, (0, area - 1)),
        "one-pixel-over": (width, height, (0, area + 1)),
        "sum-wraps-32-bits": (width, height, (0, 2**32 - 1, area + 1)),
        "sum-of-maxima": (width, height, (2**32 - 1,) * 1000),
        "nothing-set": (width, height, (area,)),
        "nothing-set-in-pieces": (width, height, (area - 5, 0, 5)),
        "runs-of-zero": (width, height, (0,) * 100_000),
        "too-many-runs": (width, height, (0,) * _MANY),
        "noise": (width, height, tuple(rng.integers(0, 2**32, 50).tolist())),
    }
    for name, mask in wrong.items():
        yield Case(f"mask-{name}", image, "mask", mask)
    fine = {
        "everything": (0, area),
        "first-pixel": (0, 1, area - 1),
        "last-pixel": (area - 1, 1),
        "checkerboard": (0, *(1,) * area),
        "runs-of-zero-between": (5, 0, 0, 0, 5, 7, area - 17),
        "a-million-runs-of-zero": (0, 9, *(0,) * 10**6, area - 9),
    }
    for name, runs in fine.items():
        yield Case(f"mask-{name}", image, ACCEPTED, (width, height, runs))
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = save(picture(rng), "JPEG", exif=turned)
    yield Case("mask-for-the-image-before-exif", upright, "mask", (width, height, (0, area)))
    yield Case("mask-for-the-upright-image", upright, ACCEPTED, (height, width, (0, area)))
    yield Case("mask-with-a-broken-image", image[:100], "image", (width, height, (0, area)))
    for heads_on in (0, 1000, 2**31, 2**32 - 1):
        yield Case(f"heads-{heads_on}", image, "focus", (width, height, (0, area)), heads_on)


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    for case in make(int(arguments[1]) if len(arguments) > 1 else 0):
        (folder / case.name).write_bytes(case.image)
        manifest.append({"name": case.name, "expected": case.expected, "mask": case.mask and case.mask[:2]})
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print(f"{len(manifest)} cases in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
