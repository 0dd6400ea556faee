"""From a prompt to hits drawn: the page of `phs-milvus web` in a real browser, over the collection of `make demo`.

    python -m benchmarks.page [--prompts 100] [--milvus demo-output/demo.db] [--picture docs/web.webp]

Boxes are drawn with the mouse around things in the demo's scenes. The clock runs in the page, from the release of the
mouse to the frame in which the hits are on the screen, and to that in which the first of them have their boxes.
--picture saves what the page looks like. It needs playwright and Debian's chromium.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.common import print_table
from phs_milvus.demo.run import BUNDLED_MODEL, BUNDLED_SCENES
from phs_milvus.demo.scenes import DemoQuery, load_scenes, queries

# Times of a prompt, in milliseconds after the mouse is released: the hits' frame, and the first boxes' frame.
CLOCK = """
() => {
  window.times = [];
  let start = null;
  document.querySelector('#stage').addEventListener('pointerup', () => { start = performance.now(); times.push({}); });
  const drawn = (name) => {
    const time = times.at(-1);
    if (start !== null && time && !(name in time))
      requestAnimationFrame(() => requestAnimationFrame((now) => { time[name] ??= performance.now() - start; }));
  };
  new MutationObserver((changes) => {
    const added = changes.flatMap((change) => [...change.addedNodes]);
    if (added.some((node) => node.matches?.('#results > section'))) drawn('hits');
    if (added.some((node) => node.matches?.('.boxes'))) drawn('boxes');
  }).observe(document.querySelector('#results'), { childList: true, subtree: true });
}
"""


@contextmanager
def served(milvus: str) -> Iterator[str]:
    """The URL of a page that is served, model and all."""
    command = [sys.executable, "-m", "phs_milvus", "web", "--milvus", milvus, "--collection", "demo", "--port", "0"]
    command += ["--model", str(BUNDLED_MODEL), "--images", str(BUNDLED_SCENES)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if found := re.search(r"http://[\d.:]+", line):
                    yield found[0].rstrip(".")
                    break
        finally:
            process.terminate()


def draw(page: Any, query: DemoQuery) -> None:
    """Draws the query's box with the mouse, in the picture that is open."""
    box = page.locator("#world").bounding_box()
    scale = box["width"] / query.scene.width
    x0, y0, x1, y1 = (edge * scale for edge in query.target.box)
    page.mouse.move(box["x"] + x0, box["y"] + y0)
    page.mouse.down()
    page.mouse.move(box["x"] + x1, box["y"] + y1, steps=4)
    page.mouse.up()


def measured(page: Any, url: str, query: DemoQuery) -> dict[str, float]:
    """The times of one prompt in a picture that is open already."""
    page.goto(f"{url}/?id={quote(query.scene.name)}")
    page.wait_for_selector("#results .card")
    page.wait_for_load_state("networkidle")  # as when somebody has looked at the picture, and then draws
    page.evaluate(CLOCK)
    draw(page, query)
    for _ in range(200):
        page.wait_for_timeout(25)
        times: dict[str, float] = page.evaluate("times.at(-1)")
        if "hits" in times and "boxes" in times:
            return times
    return {name: times.get(name, np.nan) for name in ("hits", "boxes")}


def save_picture(page: Any, path: Path) -> None:
    """What the page shows, as WebP."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(3000)  # thumbnails and boxes
    Image.open(io.BytesIO(page.screenshot())).save(path, "WEBP", quality=82, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--milvus", default="demo-output/demo.db")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    asked = queries(load_scenes(BUNDLED_SCENES), ("box",), options.prompts)
    with served(options.milvus) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 840})
        measured(page, url, asked[0])  # the model is loaded, and everything is warm
        if options.picture:
            save_picture(page, options.picture)
            return
        times = [measured(page, url, query) for query in asked]
        browser.close()
    rows = []
    for name in ("hits", "boxes"):
        values = [time[name] for time in times]
        rows.append([f"{name} drawn", *(f"{np.nanpercentile(values, share):.0f}" for share in (50, 95, 100))])
    print_table("From a prompt to hits drawn", ["prompt to", "p50 ms", "p95 ms", "max ms"], rows)


if __name__ == "__main__":
    main()
