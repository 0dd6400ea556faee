"""Files that are small and would cost a decoder much: sizes in headers, streams that inflate, endless scans."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.hostile.files import ACCEPTED, EITHER, SIZE, Case, chunk, png, save


def bombs(files: dict[str, bytes]) -> Iterator[Case]:
    flat = zlib.compressobj(9)
    inflating = b"".join(flat.compress(bytes(2**20)) for _ in range(256)) + flat.flush()
    black = bytes(2**20)
    yield Case("png-20000x20000", png(20_000, 20_000, idat=inflating), "image")
    yield Case("png-2147483647x2147483647", png(2**31 - 1, 2**31 - 1, idat=b""), "image")
    yield Case("png-0x0", png(0, 0, idat=b""), "image")
    yield Case("png-1000001x100", png(1_000_001, 100, idat=b""), "image")
    yield Case("png-no-pixels-behind-header", png(100, 100, idat=zlib.compress(b"")), "image")
    # More pixels than the header says: the picture is whole, the rest is not looked at.
    yield Case("png-16x16-inflates-to-256-mib", png(16, 16, idat=inflating), EITHER)
    text = b"Comment\0\0" + inflating
    yield Case("png-ztxt-inflates-to-256-mib", png(16, 16, chunk(b"zTXt", text)), EITHER)
    yield Case("png-itxt-inflates-to-256-mib", png(16, 16, chunk(b"iTXt", b"Comment\0\1\0\0\0" + inflating)), EITHER)
    yield Case("png-iccp-inflates-to-256-mib", png(16, 16, chunk(b"iCCP", b"icc\0\0" + inflating)), EITHER)
    yield Case("png-20000-text-chunks", png(16, 16, chunk(b"tEXt", b"a\0b") * 20_000), EITHER)
    yield Case("png-chunk-length-4-gib", png(16, 16).replace(b"\0\0\0\x19IDAT", b"\xff\xff\xff\xffIDAT"), EITHER)
    yield Case(
        "gif-65535x65535", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b",", "image"
    )
    yield Case("gif-frame-65535x65535", _gif_frame(65535, 65535), "image")
    frame = Image.new("P", (8, 8))
    frames = [Image.new("P", (8, 8), index % 256) for index in range(2000)]
    yield Case("gif-2000-frames", save(frame, "GIF", save_all=True, append_images=frames), ACCEPTED)
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
    comment = save(Image.new("RGB", SIZE), "JPEG", comment=b"\xff\xda" * 30_000)
    yield Case("jpeg-scan-markers-elsewhere", comment + b"\xff\xda" * 30_000, ACCEPTED)
    yield Case("over-32-mib", files["jpeg"] + bytes(32 * 2**20), "image")
    if "jp2" in files:
        position = files["jp2"].index(b"ihdr") + 4
        size = files["jp2"].index(b"\xff\x51") + 6
        large = bytearray(files["jp2"])
        large[position : position + 8] = large[size : size + 8] = struct.pack(">II", 65000, 65000)
        yield Case("jp2-65000x65000", bytes(large), "image")


def _tiff(width: int, height: int) -> bytes:
    """A TIFF of one gray strip, 8 bits, whose pixels are not there."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, height), (279, 9)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def _with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    position = data.index(b"\xff\xc0") + 5
    return data[:position] + struct.pack(">HH", height, width) + data[position + 4 :]


def _with_scans(count: int) -> bytes:
    """A progressive JPEG of 16 megapixels whose last scan comes `count` times more: hours of decoding in little."""
    data = save(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _gif_frame(width: int, height: int) -> bytes:
    """A small screen with a frame that is said to be much larger."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def _bmp_header(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header
