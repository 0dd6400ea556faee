"""Contact sheets: a query with its hits, or with the attention of each head, drawn as one picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from phs_milvus.contract.errors import InvalidInput, PhsError, reason_of, shown
from phs_milvus.contract.images import ImageSource, decode_upright, load_image
from phs_milvus.contract.types import Explanation
from phs_milvus.pointing.prompts import Prompt, to_array
from phs_milvus.search.hits import Hit

_TILE = 200
_GAP = 12
_CAPTION = 44
_HEADING = 34
_INK = (32, 33, 36)
_PALE = (110, 114, 120)
_PAPER = (255, 255, 255)
ACCENT = (234, 88, 12)
GOOD = (22, 163, 74)
# Above heads and above hits of both stages, on sheets and on the demo's page.
HEADS_HEADING = "What each attention head looks at; the selected ones are framed"
SCORES_HEADING = "score (ANN score #rank, Query-DB score #rank)"
# Dark to bright, for attention laid over a picture.
_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float32)


@dataclass(frozen=True)
class Tile:
    """One captioned picture; `frame` is an RGB colour, or None for no frame."""

    picture: Image.Image
    title: str
    note: str = ""
    frame: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class TileRow:
    """Tiles that belong together, wrapped where they are too many for one line; `heading` stands above them."""

    tiles: Sequence[Tile]
    heading: str = ""


def search_sheet(
    image: ImageSource,
    prompt: Prompt | None,
    hits: Sequence[Hit],
    locate: Callable[[Hit], ImageSource | None],
    columns: int = 5,
) -> Image.Image:
    """The query with its prompt drawn, then the hits with their scores.

    Args:
        locate: finds a hit's picture; None, or a picture that cannot be read, gives an empty tile.
        columns: tiles in a line.

    Raises:
        ImageError: the query cannot be read.
    """
    query = Tile(draw_prompt(load_picture(image), prompt), "your query", "the outlined part" if prompt else "all of it")
    tiles = [hit_tile(rank, hit, locate) for rank, hit in enumerate(hits, 1)]
    both = any(hit.query_db_score is not None for hit in hits)
    heading = f"Hits: {SCORES_HEADING}" if both else "Hits"
    return sheet([TileRow([query]), TileRow(tiles, heading)], columns)


def hit_tile(rank: int, hit: Hit, locate: Callable[[Hit], ImageSource | None]) -> Tile:
    """A hit's picture with rank, id and scores."""
    source = locate(hit)
    try:
        picture = blank("no file") if source is None else load_picture(source)
    except PhsError:
        picture = blank("cannot be read")
    if hit.query_db_score is None:
        note = f"score {hit.score:.3f}"
    else:
        parts = f"{hit.ann_score:.3f} #{hit.ann_rank}, {hit.query_db_score:.3f} #{hit.query_db_rank}"
        note = f"{hit.score:.3f} ({parts})"
    return Tile(picture, f"{rank}. {hit.id}", note)


def heads_sheet(
    image: ImageSource, prompt: Prompt | None, explanations: Mapping[str, Explanation], columns: int = 4
) -> Image.Image:
    """One row per zoom: the query, then each head's attention laid over it, with the selected heads framed.

    Args:
        explanations: each zoom's explanation by its title, for example "zoom 1.25".
        columns: tiles in a line.

    Raises:
        ImageError: the image cannot be read.
    """
    picture = load_picture(image)
    shown = draw_prompt(picture, prompt)
    rows = []
    for title, explanation in explanations.items():
        x0, y0, x1, y1 = explanation.region
        size = f"{x1 - x0} x {y1 - y0} of {picture.width} x {picture.height} pixels"
        query = Tile(shown, f"your query, {title}", size)
        rows.append(TileRow([query, *heads_tiles(picture, explanation)], HEADS_HEADING))
    return sheet(rows, columns)


def heads_tiles(picture: Image.Image, explanation: Explanation) -> list[Tile]:
    """One tile per head, with the heads that the prompt selects framed."""
    tiles = []
    for head, attention in enumerate(explanation.attention):
        note = "" if explanation.head_scores is None else f"on the prompt {explanation.head_scores[head]:.1%}"
        selected = explanation.head_scores is not None and explanation.head_weights[head] > 0
        title = f"head {head}" + (", selected" if selected else "")
        seen = heat(picture.crop(explanation.region), attention)
        tiles.append(Tile(seen, title, note, ACCENT if selected else None))
    return tiles


def save(picture: Image.Image, path: str) -> None:
    """Writes a picture in the format of the path's extension, and prints the path on stderr.

    Raises:
        InvalidInput: the folder is missing or cannot be written, or the extension is no picture format.
    """
    try:
        picture.save(path)
    except (OSError, ValueError, KeyError) as error:
        reason = reason_of(error)
        raise InvalidInput(f"cannot write {shown(path)}: {reason}; name a file such as out.png", "save") from None
    print(f"saved {path}", file=sys.stderr)


def load_picture(source: ImageSource) -> Image.Image:
    """An upright RGB picture.

    Raises:
        ImageError: the picture cannot be read.
    """
    return decode_upright(load_image(source).data)


def draw_prompt(picture: Image.Image, prompt: Prompt | None) -> Image.Image:
    """A copy of the picture in which the prompt is outlined and everything else dimmed."""
    if prompt is None:
        return picture
    mask = Image.fromarray(to_array(prompt, *picture.size).astype(np.uint8) * 255)
    # Drawn at the final size, so that the outline is as thick on a large photo as on a small one.
    shown = picture.copy()
    shown.thumbnail((2 * _TILE, 2 * _TILE))
    mask = mask.resize(shown.size, Image.Resampling.BOX).point(lambda share: 255 if share else 0)
    dimmed = Image.blend(shown, Image.new("RGB", shown.size, _PAPER), 0.45)
    result = Image.composite(shown, dimmed, mask)
    outline = Image.fromarray(
        np.asarray(mask.filter(ImageFilter.MaxFilter(7))) - np.asarray(mask.filter(ImageFilter.MinFilter(3)))
    )
    result.paste(ACCENT, mask=outline)
    return result


def heat(picture: Image.Image, attention: npt.NDArray[np.float32]) -> Image.Image:
    """Lays attention, float32 [grid_height, grid_width], over the picture as a heat map.

    The colour is the square root of the attention divided by its maximum, so that one bright patch does not hide the
    rest.
    """
    values = np.sqrt(attention / max(float(attention.max()), 1e-12))
    stops = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(values, stops, _HEAT[:, channel]) for channel in range(3)], axis=-1)
    overlay = Image.fromarray(colours.astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    strength = Image.fromarray((255 * (0.45 + 0.4 * values)).astype(np.uint8))
    grey = picture.convert("L").convert("RGB")
    return Image.composite(overlay, grey, strength.resize(picture.size, Image.Resampling.BILINEAR))


def blank(text: str) -> Image.Image:
    """The picture of a tile without a picture: grey, with a text."""
    tile = Image.new("RGB", (_TILE, _TILE), (240, 240, 240))
    ImageDraw.Draw(tile).text((_TILE / 2, _TILE / 2), text, fill=_PALE, anchor="mm", font=_font(14))
    return tile


def sheet(rows: Sequence[TileRow], columns: int) -> Image.Image:
    """Lays tiles out on white paper, `columns` to a line."""
    columns = min(columns, max(len(row.tiles) for row in rows))
    step_x, step_y = _TILE + _GAP, _TILE + _CAPTION + _GAP
    headings = sum(_HEADING for row in rows if row.heading)
    lines = [-(-len(row.tiles) // columns) for row in rows]
    widest = max((round(_font(18).getlength(row.heading)) for row in rows), default=0)
    width = max(columns * step_x, widest + _GAP) + _GAP
    paper = Image.new("RGB", (width, sum(lines) * step_y + headings + _GAP), _PAPER)
    top = _GAP
    for row, count in zip(rows, lines, strict=True):
        if row.heading:
            ImageDraw.Draw(paper).text((_GAP, top + 2), row.heading, fill=_INK, font=_font(18))
            top += _HEADING
        for number, tile in enumerate(row.tiles):
            line, column = divmod(number, columns)
            _place(paper, tile, _GAP + column * step_x, top + line * step_y)
        top += count * step_y
    return paper


def _place(paper: Image.Image, tile: Tile, x: int, y: int) -> None:
    picture = tile.picture.copy()
    # Small pictures are enlarged too, so that all tiles in a row are of one size.
    scale = _TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    # At the bottom of its cell, next to its caption.
    left, top = x + (_TILE - size[0]) // 2, y + _TILE - size[1]
    paper.paste(picture, (left, top))
    draw = ImageDraw.Draw(paper)
    if tile.frame is not None:
        draw.rectangle((left - 3, top - 3, left + size[0] + 2, top + size[1] + 2), outline=tile.frame, width=4)
    draw.text((x, y + _TILE + 6), _fitted(tile.title, _font(15)), fill=_INK, font=_font(15))
    draw.text((x, y + _TILE + 24), _fitted(tile.note, _font(13)), fill=_PALE, font=_font(13))


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, shortened where it is wider than a tile."""
    if font.getlength(text) <= _TILE:
        return text
    while text and font.getlength(text + "…") > _TILE:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
