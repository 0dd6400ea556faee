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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, features

ACCEPTED, EITHER = "accepted", "either"
SIZE = (96, 64)
_MANY = 2**22 + 1


@dataclass(frozen=True)
class Case:
    """One request.

    mask: (width, height, runs) or None; expected: "accepted", "either", or a field.
    """

    name: str
    image: bytes
    expected: str
    mask: tuple[int, int, tuple[int, ...]] | None = None
    heads: int = 0


def make(seed: int = 0) -> list[Case]:
    """All cases; the same seed gives the same bytes under the same Pillow."""
    rng = np.random.default_rng(seed)
    files = _files(rng)
    groups = (_truncated(files), _flipped(files, rng), _garbage(rng), _bombs(files), _odd(rng), _not_images(rng))
    return [case for group in (*groups, _masks(files["jpeg"], rng)) for case in group]


def _save(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _picture(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _files(rng: np.random.Generator) -> dict[str, bytes]:
    """The same picture in every format that Pillow writes here."""
    image = _picture(rng)
    files = {
        "jpeg": _save(image, "JPEG", quality=90),
        "jpeg-progressive": _save(image, "JPEG", progressive=True),
        "png": _save(image, "PNG"),
        "webp": _save(image, "WEBP"),
        "webp-lossless": _save(image, "WEBP", lossless=True),
        "gif": _save(image.convert("P"), "GIF"),
        "bmp": _save(image, "BMP"),
        "tiff": _save(image, "TIFF"),
        "tiff-deflate": _save(image, "TIFF", compression="tiff_adobe_deflate"),
        "ppm": _save(image, "PPM"),
    }
    if features.check("avif"):
        files["avif"] = _save(image, "AVIF")
    if features.check("jpg_2000"):
        files["jp2"] = _save(image, "JPEG2000")
    return files


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


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, idat: bytes | None = None) -> bytes:
    """An 8-bit gray PNG; `idat` defaults to the pixels, all black."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = zlib.compress(bytes((width + 1) * height)) if idat is None else idat
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _tiff(width: int, height: int) -> bytes:
    """A TIFF of one gray strip, 8 bits, whose pixels are not there."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, height), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def _with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    position = data.index(b"\xff\xc0") + 5
    return data[:position] + struct.pack(">HH", height, width) + data[position + 4 :]


def _bombs(files: dict[str, bytes]) -> Iterator[Case]:
    flat = zlib.compressobj(9)
    inflating = b"".join(flat.compress(bytes(2**20)) for _ in range(256)) + flat.flush()
    black = bytes(2**20)
    yield Case("png-20000x20000", _png(20_000, 20_000, idat=inflating), "image")
    yield Case("png-2147483647x2147483647", _png(2**31 - 1, 2**31 - 1, idat=b""), "image")
    yield Case("png-0x0", _png(0, 0, idat=b""), "image")
    yield Case("png-1000001x100", _png(1_000_001, 100, idat=b""), "image")
    yield Case("png-no-pixels-behind-header", _png(100, 100, idat=zlib.compress(b"")), "image")
    # More pixels than the header says: the picture is whole, the rest is not looked at.
    yield Case("png-16x16-inflates-to-256-mib", _png(16, 16, idat=inflating), EITHER)
    text = b"Comment\0\0" + inflating
    yield Case("png-ztxt-inflates-to-256-mib", _png(16, 16, _chunk(b"zTXt", text)), EITHER)
    yield Case("png-itxt-inflates-to-256-mib", _png(16, 16, _chunk(b"iTXt", b"Comment\0\1\0\0\0" + inflating)), EITHER)
    yield Case("png-iccp-inflates-to-256-mib", _png(16, 16, _chunk(b"iCCP", b"icc\0\0" + inflating)), EITHER)
    yield Case("png-20000-text-chunks", _png(16, 16, _chunk(b"tEXt", b"a\0b") * 20_000), EITHER)
    yield Case("png-chunk-length-4-gib", _png(16, 16).replace(b"\0\0\0\x19IDAT", b"\xff\xff\xff\xffIDAT"), EITHER)
    yield Case(
        "gif-65535x65535", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",", "image"
    )
    yield Case("gif-frame-65535x65535", _gif_frame(65535, 65535), "image")
    frame = Image.new("P", (8, 8))
    frames = [Image.new("P", (8, 8), index % 256) for index in range(2000)]
    yield Case("gif-2000-frames", _save(frame, "GIF", save_all=True, append_images=frames), ACCEPTED)
    yield Case("tiff-100000x100000", _tiff(100_000, 100_000), "image")
    yield Case("tiff-4294967295x4294967295", _tiff(2**32 - 1, 2**32 - 1), "image")
    yield Case("tiff-directory-loops", b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8), "image")
    yield Case("tiff-directory-of-65535", b"II*\0\x08\0\0\0\xff\xff" + bytes(3000), "image")
    lossless = b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(20)
    for name, kind, body in (
        ("webp-lossless-16384x16384", b"VP8L", lossless),
        ("webp-lossy-16383x16383", b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(20)),
        ("webp-extended-16777216x256", b"VP8X", bytes(4) + b"\xff\xff\xff\xff\0\0"),
    ):
        inner = b"WEBP" + kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
        yield Case(name, b"RIFF" + struct.pack("<I", len(inner)) + inner, "image")
    yield Case("bmp-60000x60000", _bmp_header(60_000, 60_000), "image")
    yield Case("bmp-negative-width", _bmp_header(-60_000, 8), "image")
    yield Case("bmp-0x0", _bmp_header(0, 0), "image")
    yield Case("ppm-99999x99999", b"P6 99999 99999 255\n" + black[:1000], "image")
    yield Case("ppm-endless-number", b"P6 " + b"9" * 100_000 + b" 1 255\n", "image")
    yield Case("ppm-maxval-0", b"P6 4 4 0\n" + bytes(48), "image")
    yield Case("jpeg-65500x65500", _with_jpeg_size(files["jpeg"], 65500, 65500), "image")
    yield Case("jpeg-0x0", _with_jpeg_size(files["jpeg"], 0, 0), "image")
    # libjpeg paints gray what a file that ends properly does not hold.
    yield Case("jpeg-larger-than-its-data", _with_jpeg_size(files["jpeg"], 4000, 4000), EITHER)
    yield Case("jpeg-of-5000-scans", _with_scans(5000), "image")
    yield Case("jpeg-of-40-scans", _with_scans(30), ACCEPTED)
    # The bytes of a scan marker, often, in a comment and behind the end.
    comment = _save(Image.new("RGB", SIZE), "JPEG", comment=b"\xff\xda" * 30_000)
    yield Case("jpeg-scan-markers-elsewhere", comment + b"\xff\xda" * 30_000, ACCEPTED)
    yield Case("over-32-mib", files["jpeg"] + bytes(32 * 2**20), "image")
    if "jp2" in files:
        position = files["jp2"].index(b"ihdr") + 4
        size = files["jp2"].index(b"\xff\x51") + 6
        large = bytearray(files["jp2"])
        large[position : position + 8] = large[size : size + 8] = struct.pack(">II", 65000, 65000)
        yield Case("jp2-65000x65000", bytes(large), "image")


def _with_scans(count: int) -> bytes:
    """A progressive JPEG of 16 megapixels whose last scan comes `count` times more: hours of decoding in little."""
    data = _save(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _gif_frame(width: int, height: int) -> bytes:
    """A small screen with a frame that is said to be much larger."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def _bmp_header(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def _odd(rng: np.random.Generator) -> Iterator[Case]:
    """Valid, and to be accepted."""
    image = _picture(rng)
    gray16 = Image.fromarray(rng.integers(0, 65536, (64, 96)).astype(np.uint16))
    transparent = image.convert("P")
    transparent.info["transparency"] = 0
    exif = Image.Exif()
    variants: dict[str, Callable[[], bytes]] = {
        "jpeg-cmyk": lambda: _save(image.convert("CMYK"), "JPEG"),
        "jpeg-gray": lambda: _save(image.convert("L"), "JPEG"),
        "jpeg-quality-1": lambda: _save(image, "JPEG", quality=1),
        "jpeg-4:4:4": lambda: _save(image, "JPEG", subsampling=0),
        "jpeg-restart-markers": lambda: _save(image, "JPEG", restart_marker_blocks=1),
        "jpeg-long-comment": lambda: _save(image, "JPEG", comment=b"x" * 65_000),
        "jpeg-garbage-icc": lambda: _save(image, "JPEG", icc_profile=rng.bytes(100_000)),
        "png-16-bit-gray": lambda: _save(gray16, "PNG"),
        "png-1-bit": lambda: _save(image.convert("1"), "PNG"),
        "png-palette": lambda: _save(image.convert("P"), "PNG"),
        "png-palette-transparent": lambda: _save(transparent, "PNG"),
        "png-gray-alpha": lambda: _save(image.convert("LA"), "PNG"),
        "png-rgba-all-transparent": lambda: _save(Image.new("RGBA", SIZE), "PNG"),
        "png-animated": lambda: _save(image, "PNG", save_all=True, append_images=[_picture(rng) for _ in range(5)]),
        "png-garbage-icc": lambda: _save(image, "PNG", icc_profile=rng.bytes(5000)),
        "webp-animated": lambda: _save(image, "WEBP", save_all=True, append_images=[_picture(rng)]),
        "webp-rgba": lambda: _save(image.convert("RGBA"), "WEBP"),
        "gif-animated": lambda: _save(
            image.convert("P"), "GIF", save_all=True, append_images=[_picture(rng).convert("P")]
        ),
        "gif-interlaced": lambda: _save(image.convert("P"), "GIF", interlace=1),
        "bmp-1-bit": lambda: _save(image.convert("1"), "BMP"),
        "bmp-palette": lambda: _save(image.convert("P"), "BMP"),
        "tiff-16-bit": lambda: _save(gray16, "TIFF"),
        "tiff-cmyk": lambda: _save(image.convert("CMYK"), "TIFF"),
        "tiff-lab": lambda: _save(Image.new("LAB", SIZE, (90, 20, 20)), "TIFF"),
        "tiff-lzw": lambda: _save(image, "TIFF", compression="tiff_lzw"),
        "tiff-jpeg": lambda: _save(image, "TIFF", compression="jpeg"),
        "tiff-packbits": lambda: _save(image, "TIFF", compression="packbits"),
        "tiff-fax": lambda: _save(image.convert("1"), "TIFF", compression="group4"),
        "tiff-two-pages": lambda: _save(image, "TIFF", save_all=True, append_images=[_picture(rng)]),
        "tiff-big": lambda: _save(image, "TIFF", big_tiff=True),
        "pgm": lambda: _save(image.convert("L"), "PPM"),
        "pgm-16-bit": lambda: _save(gray16, "PPM"),
        "pbm": lambda: _save(image.convert("1"), "PPM"),
        "ppm-text": lambda: b"P3\n# a comment\n2 1\n255\n255 0 0 0 0 255\n",
    }
    for name, build in variants.items():
        yield Case(name, build(), ACCEPTED)
    yield Case("tiff-float", _save(image.convert("L").convert("F"), "TIFF"), "image")
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        yield Case(f"{form.lower()}-1x1", _save(Image.new("RGB", (1, 1), "red"), form), ACCEPTED)
    for width, height in ((30_000, 1), (1, 30_000), (30_000, 40), (40, 30_000), (65_000, 2), (2, 65_000)):
        strip = _picture(rng, (width, height))
        yield Case(f"jpeg-{width}x{height}", _save(strip, "JPEG"), ACCEPTED)
        yield Case(f"png-{width}x{height}", _save(strip, "PNG", compress_level=1), ACCEPTED)
    for orientation in (*range(10), 255, 65535):
        exif[0x0112] = orientation
        yield Case(f"jpeg-exif-orientation-{orientation}", _save(image, "JPEG", exif=exif), ACCEPTED)
    for index, garbage in enumerate((b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", rng.bytes(300), b"\xff" * 60_000)):
        yield Case(f"jpeg-exif-garbage-{index}", _save(image, "JPEG", exif=b"Exif\0\0" + garbage), ACCEPTED)
        yield Case(f"png-exif-garbage-{index}", _png(16, 16, _chunk(b"eXIf", garbage)), ACCEPTED)
    # An EXIF directory that points at itself.
    loop = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield Case("jpeg-exif-loop", _save(image, "JPEG", exif=b"Exif\0\0" + loop), ACCEPTED)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("payload.txt"), "hello")  # without the time of day
    script = b"<script>alert(1)</script>"
    for form in ("JPEG", "PNG", "GIF", "BMP"):
        data = _save(image.convert("P") if form == "GIF" else image, form)
        yield Case(f"{form.lower()}-and-zip", data + archive.getvalue(), ACCEPTED)
        yield Case(f"{form.lower()}-and-html", data + script, ACCEPTED)
    yield Case("jpeg-html-in-comment", _save(image, "JPEG", comment=script), ACCEPTED)


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
    upright = _save(_picture(rng), "JPEG", exif=turned)
    yield Case("mask-for-the-image-before-exif", upright, "mask", (width, height, (0, area)))
    yield Case("mask-for-the-upright-image", upright, ACCEPTED, (height, width, (0, area)))
    yield Case("mask-with-a-broken-image", image[:100], "image", (width, height, (0, area)))
    for heads in (1000, 2**31, 2**32 - 2):  # 2**32 - 1 is and accepted
        yield Case(f"heads-{heads}", image, "focus", (width, height, (0, area)), heads)


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
