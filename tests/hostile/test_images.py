"""Pictures that are cheap to send and expensive to read: each costs its own error, soon, and nobody else anything."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract import pixels
from phs_milvus.contract.cost import Cost, cost_of
from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.errors import EncoderUnavailable, ImageError
from phs_milvus.contract.headers import read_header
from tests.contract.test_pixels import cmyk_profile
from tests.hostile.files import chunk, save

MIB = 2**20
LIMIT = 100_000_000
# Against hanging only: today's answer takes milliseconds, what it was before takes minutes.
HANGS = 20.0


def jpeg_with(segments: bytes) -> bytes:
    data = save(Image.new("RGB", (32, 32), "teal"), "JPEG")
    return data[:2] + segments + data[2:]


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    pixels = zlib.compress(bytes(min(width * height // 8 + height, MIB)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int]], data: bytes) -> bytes:
    """Little-endian, one page; `data` at offset 8."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiled(width: int, height: int) -> bytes:
    data = zlib.compress(bytes(MIB))
    tags = {256: (4, 64), 257: (4, 64), 258: (3, 8), 259: (3, 8), 262: (3, 1), 277: (3, 1)}
    return tiff(tags | {322: (4, width), 323: (4, height), 324: (4, 8), 325: (4, len(data))}, data)


def fax(data: bytes) -> bytes:
    """A million lines of noise, about each of which libtiff complains on stderr."""
    tags = {256: (4, 64), 257: (4, 65_000), 258: (3, 1), 259: (3, 2), 262: (3, 0), 266: (3, 1), 273: (4, 8)}
    return tiff(tags | {277: (3, 1), 278: (4, 65_000), 279: (4, len(data))}, data)


def jpeg2000(width: int, height: int, components: int) -> bytes:
    """A codestream whose every packet is empty."""
    size = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, width, height, 0, 0, components) + b"\7\1\1" * components
    parts = [(b"\xff\x51", size), (b"\xff\x52", bytes([0, 0, 0, 1, 0, 0, 4, 4, 0, 1])), (b"\xff\x5c", b"\x40\x40")]
    head = b"".join(marker + struct.pack(">H", len(body) + 2) + body for marker, body in parts)
    start = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + components, 0, 1) + b"\xff\x93"
    return b"\xff\x4f" + head + start + bytes(components) + b"\xff\xd9"


def bmp_runs(runs: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 10_000, 1500, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def gif_with(extensions: bytes) -> bytes:
    data = save(Image.new("P", (8, 8)), "GIF")
    at = data.index(b",", 13)
    return data[:at] + extensions + data[at:]


def avif_that_lies(said: int) -> bytes:
    """A plain grey picture of 8,192 x 8,192 in a box that says another size."""
    data = save(Image.new("L", (8192, 8192), 128), "AVIF", quality=1, speed=10)
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", said, said) + data[at + 8 :]


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg-exif-segments": (lambda: jpeg_with(b"\xff\xe1\0\x0cExif\0\0II*\0" * MIB), "more than 1,024 segments"),
    "jpeg-empty-segments": (lambda: jpeg_with(b"\xff\xe5\0\2" * (6 * MIB)), "more than 1,024 segments"),
    "jpeg-fill-bytes": (lambda: jpeg_with(b"\xff" * (30 * MIB)), "no segment where one should be"),
    "jpeg-junk": (lambda: jpeg_with(b"\xff\xe5\0\2" + bytes(30 * MIB)), "no segment where one should be"),
    "png-empty-chunks": (lambda: png(8, 8, chunk(b"tEXt", b"") * (2 * MIB)), "more than 65,536 chunks"),
    "png-100000000x1": (lambda: png(100_000_000, 1), "a side has at most 65,535"),
    "gif-comments": (lambda: gif_with(b"!\xfe" + b"\1x" * (8 * MIB) + b"\0"), "more than 65,536 blocks"),
    "gif-extensions": (lambda: gif_with(b"!\xf9\0" * (8 * MIB)), "more than 65,536 blocks"),
    "ppm-comment": (lambda: b"P6\n#" + b"x" * (30 * MIB) + b"\n8 8\n255\n" + bytes(192), "header of more than"),
    "ppm-comments": (lambda: b"P3\n" + b"#\n" * (15 * MIB) + b"8 8\n255\n", "header of more than"),
    "ppm-spaces": (lambda: b"P6\n" + b" " * (30 * MIB) + b"8 8\n255\n", "broken PPM header"),
    "bmp-runs": (lambda: bmp_runs(b"\1\0" * (15 * MIB)), "run-length encoded BMP"),
    "webp-chunks": (lambda: save(Image.new("RGB", (8, 8)), "WEBP") + b"JUNK\0\0\0\0" * (4 * MIB), "65,536 chunks"),
    "jp2-boxes": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * (4 * MIB), "4,096 boxes"),
    "heif-boxes": (lambda: b"\0\0\0\x0cftypheic" + b"\0\0\0\x08free" * (4 * MIB), "4,096 boxes"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_are_slow_to_read_are_refused(name: str) -> None:
    """By the same function that client and ingest read headers with."""
    make, text = HEADERS[name]
    data = make()
    started = time.monotonic()
    with pytest.raises(ImageError, match=text):
        read_header(data)
    assert time.monotonic() - started < HANGS


COSTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "jpeg2000": (lambda: jpeg2000(9999, 9999, 3), "MiB to decode as JPEG2000; .*--max-image-pixels"),
    "tiff-tile": (lambda: tiled(30_000, 20_000), "64x64 pixels in a tile of 600,000,000"),
    "tiff-tall-tile": (lambda: tiled(16_000, 40_000), "64x64 pixels in a tile of 640,000,000"),
    "png-too-many": (lambda: png(10_001, 10_000), "10001x10000 pixels; .*--max-image-pixels"),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_a_header_says_is_weighed_before_anything_is_decoded(name: str) -> None:
    make, text = COSTS[name]
    with pytest.raises(ImageError, match=text):
        cost_of(read_header(make()), 224, LIMIT)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


def decoded(decoder: Decoder, data: bytes, cost: Cost | None = None) -> np.ndarray:
    header = read_header(data)
    return decoder.fitted(header, cost or cost_of(header, 32, LIMIT), 32, Image.Resampling.BICUBIC)


def works(decoder: Decoder) -> bool:
    return bool((decoded(decoder, save(Image.new("RGB", (60, 40), (9, 8, 7)), "PNG")) == [[[9]], [[8]], [[7]]]).all())


def peak_mib(decoder: Decoder) -> float:
    status = Path(f"/proc/{decoder._child.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited and measured on Linux")
def test_a_picture_larger_than_it_says_gets_no_memory() -> None:
    for said in (64, 512):
        with Decoder() as decoder:
            assert works(decoder)
            before = peak_mib(decoder)
            with pytest.raises(ImageError, match="cannot be decoded|image declares"):
                decoded(decoder, avif_that_lies(said))
            assert peak_mib(decoder) < before + 100
            assert works(decoder)


def test_memory_and_time_end_with_the_picture(decoder: Decoder) -> None:
    large = save(Image.new("RGBA", (3000, 3000)), "PNG")
    with pytest.raises(ImageError, match="memory"):
        decoded(decoder, large, Cost(memory=20 * MIB, seconds=5))
    assert decoded(decoder, large).shape == (3, 32, 32)
    text = b"P3 2000 2000 255\n" + b"1 2 3\n" * 4_000_000
    with pytest.raises(ImageError, match=r"takes more than the 0\.2 s of processor time"):
        decoded(decoder, text, Cost(memory=500 * MIB, seconds=0.2))
    assert works(decoder)


def test_what_codecs_write_to_stderr_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    with Decoder() as decoder:
        try:
            decoded(decoder, fax(os.urandom(300_000)))
        except ImageError as error:
            assert len(str(error)) < 400 and "\n" not in str(error)
        assert works(decoder)
    assert capfd.readouterr() == ("", "")


def test_a_child_that_is_killed_costs_one_picture(decoder: Decoder) -> None:
    assert works(decoder)
    child = decoder._child
    os.kill(child.pid, signal.SIGSTOP)
    slow = save(Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)), "PNG")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert decoded(decoder, slow).shape == (3, 32, 32)  # noticed before it was sent
    os.kill(decoder._child.pid, signal.SIGSTOP)
    with pytest.raises(ImageError, match="processor time"):
        decoded(decoder, slow, Cost(memory=100 * MIB, seconds=-1.1))  # waits for 4 x seconds + 5
    assert works(decoder)


def test_a_closed_decoder_says_so() -> None:
    decoder = Decoder()
    decoder.close()
    with pytest.raises(EncoderUnavailable, match="closed"):
        works(decoder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_can_open_no_file_and_no_socket(decoder: Decoder) -> None:
    assert works(decoder)
    limits = Path(f"/proc/{decoder._child.pid}/limits").read_text().splitlines()
    found = {line[:25].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max open files"] == ["3", "3"]
    assert found["Max file size"] == found["Max core file size"] == ["0", "0"]
    assert len(list(Path(f"/proc/{decoder._child.pid}/fd").iterdir())) == 3


PARENT = """
import signal, sys, time
from phs_milvus.contract.decoding import Decoder
signal.signal(signal.SIGINT, signal.SIG_DFL)
decoder = Decoder()
decoder.start()
print(decoder._child.pid, flush=True)
time.sleep(60)
"""


def runs(pid: int) -> bool:
    """Whether a process is there, and not merely waits to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_child_outlives_its_parent_or_says_a_word(number: signal.Signals) -> None:
    """The signal goes to the whole group, as Ctrl-C and a supervisor's do."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.killpg(parent.pid, number)
    _, said = parent.communicate(timeout=30)
    assert said == ""
    until = time.monotonic() + HANGS
    while runs(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(child)


def test_the_child_imports_no_torch_and_no_grpc() -> None:
    code = "import sys, phs_milvus.contract.decoding_child; print([n for n in ('torch', 'grpc') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_pixels_are_those_of_this_process(decoder: Decoder) -> None:
    """In every format, although the child can open no file any more: nothing is imported late."""
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (700, 900, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    files = [save(picture, form, exif=exif) for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")]
    files += [save(picture, form) for form in ("GIF", "BMP", "JPEG2000", "PPM")]
    files += [save(Image.new("LAB", (900, 700), (90, 20, 20)), "TIFF")]
    files += [save(picture.convert("CMYK"), "JPEG", icc_profile=cmyk_profile())]
    if "HEIF" in pixels._READERS:
        from pillow_heif import from_pillow

        buffer = io.BytesIO()
        from_pillow(picture).save(buffer)
        files.append(buffer.getvalue())
    for data in files:
        header = read_header(data)
        for region in (None, (10, 20, 330, 400)):
            cost = cost_of(header, 32, LIMIT, region)
            expected = pixels.fitted(header, 32, Image.Resampling.BICUBIC, region, cost.scale)
            found = decoder.fitted(header, cost, 32, Image.Resampling.BICUBIC, region)
            assert np.array_equal(found, expected), header.format


@pytest.mark.parametrize(("subsampling", "each"), [("4:2:0", 3), ("4:4:4", 6)])
def test_the_buffer_of_a_progressive_jpeg_counts(subsampling: str, each: int) -> None:
    """A baseline JPEG of 200 megapixels is decoded small; a progressive one is held whole."""
    size = struct.pack(">HH", 12_000, 16_000)
    headers = []
    for options in ({}, {"progressive": True}):
        data = bytearray(save(Image.new("RGB", (64, 64)), "JPEG", subsampling=subsampling, **options))
        at = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 5
        data[at : at + 4] = size
        headers.append(read_header(bytes(data)))
    baseline, progressive = headers
    assert baseline.buffered_bytes == 0 and cost_of(baseline, 224, LIMIT).scale == 8
    assert progressive.buffered_bytes == each * 12_000 * 16_000
    if each == 3:
        assert cost_of(progressive, 224, LIMIT).memory < 800 * MIB
    else:
        with pytest.raises(ImageError, match=r"1,\d{3} MiB to decode as JPEG; .*--max-image-pixels"):
            cost_of(progressive, 224, LIMIT)
