"""Contact sheets, looked at pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.types import Focus
from phs_milvus.pointing.prompts import Box
from phs_milvus.search.contact_sheet import (
    ACCENT,
    GOOD,
    Tile,
    TileRow,
    draw_prompt,
    heads_sheet,
    heat,
    save,
    search_sheet,
    sheet,
)
from phs_milvus.search.hits import Hit

RED, BLUE = (200, 30, 30), (30, 30, 200)


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (160, 120)) -> Image.Image:
    return Image.new("RGB", size, colour)


def share(picture: Image.Image, colour: tuple[int, int, int]) -> float:
    return float((np.asarray(picture) == np.uint8(colour)).all(axis=-1).mean())


def test_tiles_stand_in_lines_in_their_order() -> None:
    colours = [(40 * index + 20, 0, 255 - 40 * index) for index in range(5)]
    paper = sheet([TileRow([Tile(flat(colour, (50, 50)), "t") for colour in colours], "a heading")], columns=3)
    middles = [paper.getpixel((12 + 212 * (index % 3) + 100, 46 + 256 * (index // 3) + 100)) for index in range(5)]
    assert middles == colours
    assert paper.size[1] == 2 * 256 + 34 + 12
    assert sheet([TileRow([Tile(flat(RED), "t")])], columns=3).width < paper.width / 2


def test_small_and_large_pictures_fill_a_tile_and_keep_their_shape() -> None:
    for size in ((2, 4), (1000, 2000)):
        paper = np.asarray(sheet([TileRow([Tile(flat(RED, size), "t")])], columns=1))
        rows, columns = np.nonzero((paper == np.uint8(RED)).all(axis=-1))
        assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (100, 200)


def test_frames_and_long_titles() -> None:
    framed = sheet([TileRow([Tile(flat(RED), "t", frame=GOOD)])], columns=1)
    assert share(framed, GOOD) > 0.02 and share(sheet([TileRow([Tile(flat(RED), "t")])], columns=1), GOOD) == 0
    long = sheet([TileRow([Tile(flat(RED), "name" * 100)] * 2)], columns=2)
    gap = np.asarray(long)[220:260, 212:224]  # between the captions
    assert (gap == 255).all()


def test_outside_of_the_prompt_is_dimmed_and_its_edge_drawn() -> None:
    shown = draw_prompt(flat(RED, (400, 400)), Box(100, 100, 300, 300))
    assert shown.getpixel((200, 200)) == RED
    assert min(shown.getpixel((20, 20))) > 100
    assert shown.getpixel((99, 200)) == ACCENT
    assert draw_prompt(flat(RED), None).getpixel((5, 5)) == RED
    thin = draw_prompt(flat(RED, (4000, 4000)), Box(10, 10, 12, 12))  # smaller than a pixel of the thumbnail
    assert share(thin, ACCENT) > 0


def test_heat_is_brightest_where_attention_is() -> None:
    attention = np.zeros((2, 2), np.float32)
    attention[0, 1] = 0.5
    values = np.asarray(heat(flat((120, 120, 120), (80, 80)), attention)).astype(int).sum(axis=-1)
    top, left = np.unravel_index(values.argmax(), values.shape)
    assert top < 40 <= left
    assert np.asarray(heat(flat(RED), np.zeros((2, 2), np.float32))).size  # no head looks anywhere: no division by zero


def test_a_search_sheet_shows_hits_that_have_no_picture(tmp_path: Path) -> None:
    flat(BLUE).save(tmp_path / "there.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = {"there": tmp_path / "there.png", "broken": tmp_path / "broken.png", "gone": tmp_path / "gone.png"}
    hits = [
        Hit(id=name, score=0.5, ann_score=0.4, ann_rank=1, fields={}) for name in ("there", "broken", "gone", "unknown")
    ]
    paper = search_sheet(flat(RED), Box(10, 10, 60, 60), hits, lambda hit: files.get(str(hit.id)))
    assert share(paper, BLUE) > 0.02 and share(paper, RED) > 0.005
    assert share(paper, (240, 240, 240)) > 3 * 0.03  # three empty tiles


def test_a_heads_sheet_frames_the_selected_heads(encoder: Encoder) -> None:
    prompt = Box(20, 20, 60, 60)
    explanation = encoder.explain(flat(BLUE), prompt, focus=Focus(1))
    one = heads_sheet(flat(BLUE), None, {"zoom 0": explanation})
    two = heads_sheet(flat(BLUE), None, {"zoom 0": explanation, "zoom 2": explanation})
    assert two.width == one.width and two.height > 1.9 * one.height
    assert share(one, ACCENT) == pytest.approx(share(two, ACCENT), rel=0.1) and share(one, ACCENT) > 0.002
    plain = heads_sheet(flat(BLUE), None, {"zoom 0": encoder.explain(flat(BLUE))})
    assert plain.size == one.size and share(plain, ACCENT) == 0  # without a prompt no head is selected


@pytest.mark.parametrize("name", ["no/such/x.png", "x.nonsense", "x", "x.palm", "file/x.png", "n" * 300 + ".png"])
def test_what_cannot_be_saved_is_explained(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot write .*; name a file such as out.png") as caught:
        save(flat(RED), str(tmp_path / name))
    assert caught.value.field == "save"


def test_saving_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(flat(RED), str(tmp_path / "x.webp"))
    assert capsys.readouterr().err == f"saved {tmp_path / 'x.webp'}\n"
    with Image.open(tmp_path / "x.webp") as saved:
        assert saved.format == "WEBP" and saved.size == (160, 120)
