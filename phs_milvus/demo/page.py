"""The demo's web page: one file, pictures inside, no script, legible on a phone."""

from __future__ import annotations

import base64
import html
import io
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from phs_milvus.contract.types import Focus, ModelInfo
from phs_milvus.demo.measure import Measured
from phs_milvus.search.contact_sheet import ACCENT, GOOD, HEADS_HEADING, SCORES_HEADING, Tile

_PICTURE = 260  # pixels, the longer side of an embedded picture


@dataclass(frozen=True)
class Section:
    """One query: itself, what each head looks at, and the hits of the three searches.

    Attributes:
        title: the prompt in words.
        query, heads, whole, published, focused: tiles of the query, of each head's attention, and of the hits of the
            whole-image search, of PHS as published, and of the default focused search.
        truth: whether it is known which hits are right; the right ones are framed.
    """

    title: str
    query: Tile
    heads: list[Tile]
    whole: list[Tile]
    published: list[Tile]
    focused: list[Tile]
    truth: bool

    @property
    def whole_heading(self) -> str:
        """The heading above the hits of the whole image."""
        return "Whole image" + self._right(self.whole)

    @property
    def focused_heading(self) -> str:
        """The heading above the hits of the default focused search."""
        return "roi + PHS, blended: the default" + self._right(self.focused) + "; boxed where it is"

    @property
    def published_heading(self) -> str:
        """The heading above the hits of PHS as published."""
        return "PHS as published" + self._right(self.published)

    def _right(self, tiles: Sequence[Tile]) -> str:
        return f": {sum(tile.frame == GOOD for tile in tiles)} of {len(tiles)} right" if self.truth else ""


def write_page(
    path: Path,
    info: ModelInfo,
    focus: Focus,
    pictures: int,
    sections: Sequence[Section],
    figures: Sequence[Measured],
    query_count: int,
    chance: float,
    *,
    bundled: bool,
) -> Path:
    """Writes the page and returns its path.

    Args:
        path: the file to write.
        info, focus: the model, and the focus of the focused searches.
        pictures: number of pictures in the collection.
        sections: one for each query shown.
        figures: the measured methods; empty without ground truth.
        query_count, chance: the number of queries measured, and the MP@10 of a random order.
        bundled: whether the model is the bundled one, which is not for photos.
    """
    commands = html.escape("\n".join(next_commands()))
    parts = [
        _HEAD,
        _intro(info, focus, pictures, bool(figures), bundled),
        _table(figures, query_count, chance) if figures else "",
        *map(_section, sections),
        f"<section><h2>Your own photos</h2>\n<pre>{commands}</pre></section>",
        "</main></html>\n",
    ]
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def program() -> str:
    """This program as a shell finds it: its path where it is not on the PATH."""
    return "phs-milvus" if shutil.which("phs-milvus") else shlex.quote(sys.argv[0])


def next_commands() -> list[str]:
    """Commands to run on one's own photos."""
    model = "--model facebook/dinov2-base"
    return [
        f"{program()} ingest ~/Pictures {model}",
        f"{program()} search photo.jpg --box 40,60,180,220 --save hits.png {model}",
        f"{program()} explain photo.jpg --box 40,60,180,220 --save heads.png {model}",
        f"{program()} web {model}",
    ]


def _intro(info: ModelInfo, focus: Focus, pictures: int, truth: bool, bundled: bool) -> str:
    model = html.escape(Path(info.model_id).name)
    text = (
        f"<p>{pictures:,} pictures were encoded by a real gRPC server and stored in Milvus Lite. Each query below is "
        "searched three times: with the whole picture, and twice with the outlined part. PHS as published selects the "
        f"attention heads of the model's last layer that attend to this part: {focus.heads_on} of {info.heads}. The "
        "candidates are then scored again with the same heads (Query-DB), from two small vectors stored with each "
        "picture. The default also moves the attention onto the outlined part (roi) and finds candidates with all "
        "heads; its score is the mean of both stages'. The query's own picture is left out.</p>"
    )
    if truth:
        text += (
            "<p>A green frame means that the picture contains the outlined thing. The queries are taken at even steps "
            "through the set, not chosen by their results.</p>"
        )
    else:
        text += "<p>The prompts are simply the middle of each picture; a prompt on one thing finds more.</p>"
    if not bundled:
        return text + f"<p>Model: <code>{model}</code>.</p>"
    return text + (
        "<p class=note>The bundled model is small and was trained on rendered scenes. It is for trying "
        "things out, <b>not for photos</b>; use <code>facebook/dinov2-base</code> for photos.</p>"
    )


def _table(figures: Sequence[Measured], query_count: int, chance: float) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(row.method)}<td>{row.precision:.3f}"
        + (f"<td>{row.gain:+.3f} ± {row.gain_error:.3f}" if number else "<td>")
        for number, row in enumerate(figures)
    )
    return (
        f"<h2>Over {query_count} queries</h2><p>MP@10: the share of the first ten pictures that contain the thing, "
        f"averaged over {query_count} box queries; the query itself is left out, and a random order gives "
        f"{chance:.3f}. Gains are means of paired differences to the whole image, with their standard error. Query-DB "
        "misses pictures in which the selected heads attend to something else.</p>"
        f"<table><tr><th>method<th>MP@10<th>gain{rows}</table>"
    )


def _section(section: Section) -> str:
    return (
        f"<section><h2>{html.escape(section.title)}</h2>"
        f"<div class=asked>{_figure(section.query)}"
        f"<details open><summary>{HEADS_HEADING}</summary>"
        f"<div class='row heads'>{''.join(map(_figure, section.heads))}</div></details></div>"
        f"<h3>{section.whole_heading}</h3><div class=row>{''.join(map(_figure, section.whole))}</div>"
        f"<h3>{section.published_heading}</h3><div class=row>{''.join(map(_figure, section.published))}</div>"
        f"<h3>{section.focused_heading} <small>{SCORES_HEADING}</small></h3>"
        f"<div class=row>{''.join(map(_figure, section.focused))}</div></section>"
    )


def _figure(tile: Tile) -> str:
    kind = {GOOD: "good", ACCENT: "chosen"}.get(tile.frame) if tile.frame else None
    marked = f" class={kind}" if kind else ""
    title, note = html.escape(tile.title), html.escape(tile.note)
    return (
        f"<figure{marked}><img src='{_data_uri(tile.picture)}' alt='{title}'>"
        f"<figcaption>{title}<small>{note}</small></figcaption></figure>"
    )


def _data_uri(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


_HEAD = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<link rel=icon href="data:,">
<title>phs_milvus: search by the thing you point at</title>
<style>
body { margin: 0; background: #fff; color: #202124; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.2rem; } h3 { margin: 1.2rem 0 .4rem; }
p { max-width: 46rem; } .note { background: #fff7ed; border-left: 4px solid #ea580c; padding: .6rem .9rem; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 12px; }
.heads { grid-template-columns: repeat(auto-fill, minmax(min(112px, 30%), 1fr)); margin-top: 8px; }
.asked { display: grid; grid-template-columns: 260px 1fr; gap: 20px; }
@media (max-width: 700px) { .asked { grid-template-columns: 1fr; } .asked > figure { max-width: 260px; } }
figure { margin: 0; } img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; box-sizing: border-box;
  background: #f4f4f5; border: 4px solid transparent; border-radius: 8px; }
.good img { border-color: #16a34a; } .chosen img { border-color: #ea580c; }
figcaption { font-size: .8rem; overflow-wrap: anywhere; } small { display: block; color: #5f6368; font-weight: normal; }
summary { cursor: pointer; color: #5f6368; } section { border-top: 1px solid #e4e4e7; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; }
td { border-top: 1px solid #e4e4e7; } td + td { white-space: nowrap; }
code, pre { background: #f4f4f5; border-radius: 4px; padding: .1em .3em; }
pre { padding: .8rem; overflow-x: auto; }
</style>
<main><h1>Search a picture collection by the thing you point at</h1>"""
