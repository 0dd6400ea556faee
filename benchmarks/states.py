"""What int8 states cost in exactness, and what they save, against float16: for every family of models.

    python -m benchmarks.states [--shared ../shared] [--queries 60] [--only demo] [--no-times]

The families are small checkpoints of random weights, as the tests make them: they tell about numeric error in each
kind of last layer, and nothing about pictures. The demo's model and DeiT-Tiny are trained.

Every picture's state is rounded to both formats and read out with the head weights of a query: another picture with a
box in it, encoded with the default focus. A cosine is between the readouts of one state in both formats; the worst is
over all pictures and queries. An overlap is the share of the first 100 pictures by Query-DB score that is the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import REPO, dinov2, interleaved, print_table, process_seconds, server
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import state as codec
from phs_milvus.contract.types import Float32Array
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.devices import available_cores
from phs_server.model.engine import FocusEngine
from phs_server.model.head_selection import default_head_count
from tests.checkpoints import FAMILIES, save_checkpoint

_TOP = 100
_BATCH = 32
# Timed together: the kernel counts another process's time in hundredths of a second.
_CALLS = 10


def compare(name: str, model: Path, files: Sequence[Path], queries: int) -> list[object]:
    """One row of the table."""
    loaded = checkpoint.load(str(model))
    engine = FocusEngine(loaded, "cpu", "float32")
    heads, grid = loaded.backbone.heads, loaded.preprocessing.grid
    pixels = np.stack([loaded.preprocessing.squashed(Image.open(file).convert("RGB")) for file in files])
    states = np.concatenate([engine.encode(some, _whole(len(some), heads, grid)).state for some in _batches(pixels)])
    hidden = states.shape[2]
    texts = {kind: [codec.pack(state, kind) for state in states] for kind in codec.STATE_FORMATS}
    stored = [codec.unpack_stored(some, hidden) for some in texts.values()]

    rng = np.random.default_rng(0)
    worst, overlaps = 1.0, []
    for query in rng.choice(len(files), queries, replace=False):
        asked = engine.encode(pixels[query : query + 1], _boxed(rng, heads, grid))
        exact, ours = (engine.read_out(some, asked.head_weights) for some in stored)
        worst = min(worst, float(np.einsum("ke,ke->k", exact, ours, dtype=np.float64).min()))
        first = [_first(found @ asked.embedding[0], query) for found in (exact, ours)]
        overlaps.append(len(np.intersect1d(*first)) / _TOP)
    error = np.std(overlaps, ddof=1) / len(overlaps) ** 0.5
    full, small = (len(some[0]) for some in texts.values())
    cosine, overlap = f"{worst:.5f}", f"{np.mean(overlaps):.4f} ± {error:.4f}"
    return [name, hidden, heads, len(files), cosine, overlap, full, f"{small} ({small / full:.0%})"]


def _batches(pixels: np.ndarray) -> Iterator[np.ndarray]:
    return (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))


def _whole(count: int, heads: int, grid: int) -> PromptBatch[np.ndarray]:
    return PromptBatch(np.zeros((count, grid**2), np.float32), np.full(count, heads, np.int64))


def _boxed(rng: np.random.Generator, heads: int, grid: int) -> PromptBatch[np.ndarray]:
    """A box of a sixteenth to a quarter of the picture, and the default focus."""
    mask = np.zeros((grid, grid), np.float32)
    height, width = rng.integers(max(1, grid // 4), max(2, grid // 2 + 1), 2)
    top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
    mask[top : top + height, left : left + width] = 1
    kept = np.array([default_head_count(heads)])
    return PromptBatch(mask.reshape(1, -1), kept, np.ones(1, np.float32))


def _first(scores: Float32Array, query: int) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    return order[order != query][:_TOP]


def models(shared: Path, folder: Path) -> Iterator[tuple[str, Callable[[], Path], list[Path]]]:
    """Name, what makes or finds the checkpoint, and pictures; what is not at hand is named and left out."""
    scenes = sorted((REPO / "assets" / "demo_scenes").glob("*.webp"))
    for family in sorted(FAMILIES):
        yield f"{family}, random", lambda family=family: save_checkpoint(family, folder / family), scenes
    yield "dinov2 small/14, random", lambda: dinov2("small", folder / "small"), scenes[:300]
    yield "demo model", lambda: REPO / "assets" / "demo_model", scenes
    deit, voc = shared / "models" / "deit-tiny-patch16-224", shared / "data" / "VOC2007" / "JPEGImages"
    for place in (deit / "model.safetensors", voc):
        if not place.exists():
            print(f"SKIPPED: DeiT-Tiny on VOC: there is no {place}")
            return
    yield "DeiT-Tiny", lambda: deit, sorted(voc.glob("*.jpg"))


def times(name: str, model: Path, candidates: int, seconds: float) -> Iterator[list[object]]:
    """Rows: from rows' texts to scores, through a server on loopback; processor time of both ends."""
    with server(model, "--threads", "1") as (address, process), Encoder(address) as encoder:
        info, rng = encoder.info, np.random.default_rng(0)
        states = rng.standard_normal((candidates, 2, info.hidden_size)).astype(np.float16)
        embedding = rng.standard_normal((1, info.embedding_size)).astype(np.float32)
        weights = np.ones((1, info.heads), np.float32)

        def rerank(kind: codec.StateFormat) -> Callable[[], object]:
            texts = [codec.pack(state, kind) for state in states]

            def run() -> None:
                for _ in range(_CALLS):
                    encoder.rerank(embedding, weights, codec.unpack_stored(texts, info.hidden_size))

            return run

        contenders = {kind: rerank(kind) for kind in codec.STATE_FORMATS}
        found = interleaved(contenders, seconds, lambda: time.process_time() + process_seconds(process.pid))
        for kind, (median, speed) in found.items():
            yield [name, info.precision, kind, 1e3 * median / _CALLS, speed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=REPO.parent / "shared", help="holds models/ and data/")
    parser.add_argument("--queries", type=int, default=60, help="per model (default: %(default)s)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--no-times", action="store_true", help="exactness alone")
    parser.add_argument("--candidates", type=int, default=1000, help="of the timed rerank (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="per model that is timed (default: %(default)g)")
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for model, place, files in models(arguments.shared, folder):
            if arguments.only in model:
                started = time.monotonic()
                rows.append(compare(model, place(), files, arguments.queries))
                print(f"{model}: {time.monotonic() - started:.0f} s", flush=True)
        header = ["model", "D", "H", "pictures", "worst cosine", "overlap of the first 100"]
        print_table("int8 states against float16", [*header, "float16, characters a row", "int8"], rows)
        if not arguments.no_times:
            timed = [*times("DINOv2 base/14", dinov2("base", folder / "base"), arguments.candidates, arguments.seconds)]
            header = ["model", "precision", "states", "processor ms", "speed against float16"]
            print_table(f"{arguments.candidates} states, from text to scores through gRPC, Q=1", header, timed)


if __name__ == "__main__":
    main()
