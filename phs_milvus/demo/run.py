"""The demo from end to end: ingests pictures, searches each query three times, measures, writes a page and sheets."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import ImageError, PhsError
from phs_milvus.contract.images import load_image
from phs_milvus.contract.types import Focus
from phs_milvus.demo.measure import Measured, chance, measure
from phs_milvus.demo.page import Section, write_page
from phs_milvus.demo.scenes import DemoQuery, Scene, load_scenes, queries
from phs_milvus.ingest.folder import ingest_folder
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.pointing.prompts import Box, Prompt
from phs_milvus.search.contact_sheet import (
    GOOD,
    HEADS_HEADING,
    SCORES_HEADING,
    Tile,
    TileRow,
    draw_prompt,
    heads_tiles,
    hit_tile,
    load_picture,
    sheet,
)
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.hits import Hit

ASSETS = Path(__file__).parents[2] / "assets"
BUNDLED_MODEL = ASSETS / "demo_model"
BUNDLED_SCENES = ASSETS / "demo_scenes"
PHOTO_MODEL = "facebook/dinov2-base"
# Chosen for the bundled model on scenes that are neither shipped nor reported (tools/demo_model/README.md).
BUNDLED_FOCUS = Focus(heads_on=3)

_WRITTEN = re.compile(r"demo\.db|index\.html|query-\d+\.png")
_SHOWN = 6
_HITS = 7
# In each hit of the default search.
_BOXES = 1
_MEASURED = 300


@dataclass(frozen=True)
class Shown:
    """One query of the page.

    Attributes:
        path, prompt: the picture's file, and the prompt in it.
        title: the prompt in words.
        right: ids of the pictures that contain the thing; None where that is not known.
    """

    path: Path
    prompt: Prompt
    title: str
    right: frozenset[str] | None


def is_demo(folder: Path) -> bool:
    """Whether there is nothing in a folder but what a demo writes."""
    return all(_WRITTEN.fullmatch(entry.name) for entry in folder.iterdir())


def run_demo(encoder: Encoder, client: Any, output: Path, images: Path | None) -> Path:
    """Ingests, searches, measures, and writes the page.

    Args:
        encoder: a client of the embedding server.
        client: a MilvusClient; its collection "demo" is replaced.
        output: folder for index.html and the PNG sheets.
        images: the user's own pictures; None: the bundled scenes, which come with ground truth.

    Returns:
        the path of index.html.

    Raises:
        PhsError: no picture in the folder could be ingested, or ingest or search failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    for old in output.glob("query-*.png"):  # an earlier demo may have had more queries
        if _WRITTEN.fullmatch(old.name):
            old.unlink()
    started = time.perf_counter()
    folder = images or BUNDLED_SCENES
    # Replaced each time, because another model may have filled it; it holds nothing but the demo.
    collection = FocusedCollection.create(client, "demo", encoder.info, overwrite=True)
    report = ingest_folder(folder, collection, encoder)
    if report.failed_count:
        print(report, file=sys.stderr)
    if not collection.count():
        raise PhsError(f"no picture in {folder} could be ingested")
    ingested = time.perf_counter()
    search = FocusedSearch(collection, encoder)
    bundled = encoder.info.model_id == str(BUNDLED_MODEL)
    focus = BUNDLED_FOCUS if bundled else Focus(heads_on=encoder.info.default_heads)
    scenes = [] if images else load_scenes(folder)
    shown = [_from_scene(folder, scenes, query) for query in queries(scenes, ("box", "point", "mask"), _SHOWN)]
    if images:
        shown = _from_photos(collection, _SHOWN)
    sections = [_section(search, encoder, focus, output, number, query) for number, query in enumerate(shown, 1)]
    figures = _measured(search, focus, folder, scenes)
    page = write_page(
        output / "index.html",
        encoder.info,
        focus,
        collection.count(),
        sections,
        *figures,
        bundled=bundled,
    )
    done = time.perf_counter()
    print(
        f"\n{report.encoded} pictures ingested in {ingested - started:.1f} s, "
        f"searched{', measured' if scenes else ''} and drawn in {done - ingested:.1f} s",
        file=sys.stderr,
    )
    return page


def _from_scene(folder: Path, scenes: Sequence[Scene], query: DemoQuery) -> Shown:
    label = query.target.label
    right = frozenset(scene.name for scene in scenes if label in scene.labels)
    path = folder / query.scene.name
    return Shown(path, query.prompt, f"{query.kind} on the {label}", right)


def _from_photos(collection: FocusedCollection, count: int) -> list[Shown]:
    """Queries without ground truth: the middle of the first few pictures."""
    shown = []
    for row_id in collection.iterate_ids():
        path = Path(collection.get([row_id], ["path"])[0]["path"])
        try:
            image = load_image(path)
        except ImageError:
            continue
        third = Box(image.width / 3, image.height / 3, image.width * 2 / 3, image.height * 2 / 3)
        shown.append(Shown(path, third, f"the middle of {row_id}", None))
        if len(shown) == count:
            break
    return shown


def _section(search: FocusedSearch, encoder: Encoder, focus: Focus, output: Path, number: int, query: Shown) -> Section:
    """Searches with the whole image, with PHS as published and with the default focus, locates the thing in the hits
    of the last, and draws all three."""
    published = Focus.paper(focus.heads_on)

    def tiles(prompt: Prompt | None, boxes: int = 0, **options: Any) -> list[Tile]:
        result = search.search(query.path, prompt, limit=_HITS, output_fields=["path"], exclude_query=True, **options)
        return _tiles(result.locate(boxes=boxes).hits if boxes else result.hits, query.right)

    picture = load_picture(query.path)
    section = Section(
        title=query.title,
        query=Tile(draw_prompt(picture, query.prompt), "the query", query.title),
        heads=heads_tiles(picture, encoder.explain(query.path, query.prompt, focus=published)),
        whole=tiles(None, score="ann"),
        published=tiles(query.prompt, score="query_db", focus=published),
        focused=tiles(query.prompt, boxes=_BOXES, focus=focus),
        truth=query.right is not None,
    )
    _sheet_of(section).save(output / f"query-{number}.png")
    return section


def _tiles(hits: Sequence[Hit], right: frozenset[str] | None) -> list[Tile]:
    tiles = []
    for rank, hit in enumerate(hits, 1):
        tile = hit_tile(rank, hit, lambda hit: hit.fields.get("path"))
        frame = GOOD if right is not None and hit.id in right else None
        tiles.append(Tile(tile.picture, tile.title, tile.note, frame))
    return tiles


def _sheet_of(section: Section) -> Image.Image:
    """The section as one picture: query and heads, and the hits of each search."""
    rows = [
        TileRow([section.query, *section.heads], HEADS_HEADING),
        TileRow(section.whole, section.whole_heading),
        TileRow(section.published, section.published_heading),
        TileRow(section.focused, f"{section.focused_heading}; {SCORES_HEADING}"),
    ]
    return sheet(rows, _HITS)


def _measured(
    search: FocusedSearch, focus: Focus, folder: Path, scenes: list[Scene]
) -> tuple[list[Measured], int, float]:
    """(figures, number of queries, MP@10 of a random order); empty and zeros without ground truth."""
    if not scenes:
        return [], 0, 0.0
    asked = queries(scenes, ("box",), _MEASURED)
    figures = measure(search, focus, scenes, asked, lambda scene: str(folder / scene.name))
    return figures, len(asked), chance(scenes, asked)
