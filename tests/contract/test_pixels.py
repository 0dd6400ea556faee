"""Pictures that people have, and what viewers show of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.headers import read_header
from phs_milvus.contract.images import decode_upright, load_image, open_header
from tests.contract.support import encode, error_of, pixels

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def bmp32(pixels: np.ndarray, alpha: np.ndarray) -> bytes:
    """BGRA with masks for all four, as the Windows clipboard writes it."""
    body = np.dstack([pixels[..., ::-1], alpha])[::-1].tobytes()
    height, width = alpha.shape
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs"
    return b"BM" + struct.pack("<IHHI", 138 + len(body), 0, 0, 138) + header.ljust(124, b"\0") + body


def png(width: int, depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """One row of pixels with a transparent value."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_alpha_that_is_0_everywhere_in_a_bmp_means_none() -> None:
    assert np.array_equal(pixels(bmp32(PICTURE, np.zeros((6, 8), np.uint8))), PICTURE)
    some = np.zeros((6, 8), np.uint8)
    some[2] = 255
    expected = np.where(some[..., None] > 0, PICTURE, 255)
    assert np.array_equal(pixels(bmp32(PICTURE, some)), expected)


def test_one_transparent_value_in_every_depth() -> None:
    wide = np.array([0, 0x1234, 0x12FF], ">u2")
    assert pixels(png(3, 16, 0, wide.tobytes(), b"\x12\x34"))[0, :, 0].tolist() == [0, 255, 0x12]
    assert pixels(png(4, 4, 0, b"\x05\xaf", b"\0\x05"))[0, :, 0].tolist() == [0, 255, 170, 255]
    assert pixels(png(4, 2, 0, b"\x1b", b"\0\x01"))[0, :, 0].tolist() == [0, 255, 170, 255]
    row = np.array([0x1234, 0, 0, 0x1200, 0xFF00, 0], ">u2").tobytes()
    assert pixels(png(2, 16, 2, row, b"\x12\x34\0\0\0\0"))[0].tolist() == [[255, 255, 255], [0x12, 255, 0]]


def cmyk_profile() -> bytes:
    """A printer with red paper ink: magenta on yellow gives a middle grey, black gives black, all else is white."""
    nodes = [
        (128, 128, 128) if (m, y, k) == (1, 1, 0) else (0, 128, 128) if k else (255, 128, 128)
        for _ in (0, 1)
        for m in (0, 1)
        for y in (0, 1)
        for k in (0, 1)
    ]
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4
    table += b"".join(map(bytes, nodes)) + bytes(range(256)) * 3
    size = 128 + 4 + 12 + len(table)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_cmyk_is_converted_by_its_profile() -> None:
    """Without one by the plain formula; what is no profile of CMYK counts as none."""
    cmyk = Image.fromarray(np.full((16, 16, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    plain = pixels(encode(cmyk, "JPEG", quality=95))
    assert np.abs(plain[8, 8].astype(int) - [255, 0, 0]).max() <= 8
    printed = pixels(encode(cmyk, "JPEG", quality=95, icc_profile=cmyk_profile()))[8, 8].astype(int)
    assert np.ptp(printed) <= 4 and abs(printed[0] - 119) <= 6  # L* 50
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (rgb_profile, b"no profile" * 20):
        data = encode(cmyk, "JPEG", quality=95, icc_profile=profile)
        assert b"ICC_PROFILE" in read_header(data).data
        assert np.array_equal(pixels(data), plain)


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(np.kron(PICTURE, np.ones((16, 16, 1), np.uint8)))
    for orientation, size in ((1, (128, 96)), (6, (96, 128)), (3, (128, 96))):
        exif = Image.Exif()
        exif[274] = orientation
        buffer = io.BytesIO()
        pillow_heif.from_pillow(image).save(buffer, quality=90, exif=exif.tobytes())
        data = buffer.getvalue()
        assert open_header(data) == (*size, "HEIF")
        expected = {1: PICTURE, 6: np.rot90(PICTURE, -1), 3: PICTURE[::-1, ::-1]}[orientation]
        assert np.abs(pixels(data)[8::16, 8::16].astype(int) - expected).mean() < 12


@pytest.mark.parametrize("name", ["HEIF", "AVIF"])
def test_a_format_that_needs_a_package_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from phs_milvus.contract import pixels

    monkeypatch.delitem(pixels._READERS, name, raising=False)
    data = encode(Image.new("RGB", (32, 32)), "AVIF")
    if name == "HEIF":
        data = data.replace(b"ftypavif", b"ftypheic").replace(b"avif", b"heic")
    assert load_image(data).width == 32  # whoever sends it needs no decoder
    with pytest.raises(ImageError, match=r"pip install .*(heif|pillow)"):
        decode_upright(data)


def test_a_phone_writes_two_pictures_into_one_file() -> None:
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    data = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert open_header(data) == (40, 30, "JPEG")
    assert (pixels(data)[..., 0] > 240).all()


def test_metadata_is_left_out_and_read_all_the_same() -> None:
    exif = Image.Exif()
    exif[274] = 6
    exif[270] = "x" * 30_000
    for form in ("JPEG", "PNG"):
        options = {"exif": exif, "icc_profile": b"i" * 30_000}
        header = read_header(encode(Image.fromarray(PICTURE), form, **options))
        assert header.upright_size == (6, 8) and len(header.data) < 2000
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    for form in ("JPEG", "WEBP", "TIFF"):
        data = encode(Image.fromarray(PICTURE), form, **({"tiffinfo": {700: xmp}} if form == "TIFF" else {"xmp": xmp}))
        assert open_header(data) == (6, 8, form) and pixels(data).shape == (8, 6, 3)


def test_what_is_no_path_is_said_in_a_line() -> None:
    for text, reason in (
        ("/9j/" + "A" * 4_000_000, "looks like base64"),
        ("iVBORw0KGgo" + "A" * 1000, "looks like base64"),
        ("data:image/jpeg;base64," + "A" * 200_000, "data: URI"),
        ("https://example.org/a.jpg", "URLs are not fetched"),
        ("S3://bucket/" + "k" * 5000 + ".jpg", "URLs are not fetched"),
        ("x" * 300 + ".jpg" * 2000, "File name too long"),
    ):
        said = error_of(text)
        assert reason in said and len(said) < 500 and "\n" not in said
