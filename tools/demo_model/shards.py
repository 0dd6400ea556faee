"""Training scenes on disk: a worker renders shards a little ahead, the trainer reads them.

A scene takes some 4 ms to render and is worth showing more than once, so every shard is visited
`visits` times: once when it is new, then at random while it is among the last WINDOW. The order of
visits depends on the stage alone, never on how fast the worker is, so that a run can be resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np

from tools.demo_model.categories import NAMES
from tools.demo_model.scenes import TRAIN_SEEDS, render

SHARD = 2048  # scenes in a shard
WINDOW = 16  # shards kept: 16 x 390 MB at the largest size
AHEAD = 2  # shards the worker may be ahead of the trainer
STAGE_SEEDS = 100_000_000  # distance between the first seeds of two stages

Job = tuple[int, int, int, bool]  # stage, shard, side in pixels, scenes of a single object


def labels_of(scene) -> np.ndarray:
    """Multi-hot categories of a scene, uint8 [C]."""
    found = np.zeros(len(NAMES), np.uint8)
    found[[NAMES.index(item.label) for item in scene.objects]] = 1
    return found


def visit_order(stage: int, visits: int, count: int) -> list[int]:
    """Shard numbers in the order they are read, `count` entries."""
    rng = np.random.default_rng((stage, 7))
    order: list[int] = []
    shard = 0
    while len(order) < count:
        order.append(shard)
        # Few visits while there are few shards, or the first ones would be learned by heart.
        again = min(visits - 1, shard // 2)
        order.extend(rng.integers(max(0, shard - WINDOW + 1), shard + 1, again).tolist())
        shard += 1
    return order[:count]


def _path(folder: Path, stage: int, shard: int) -> Path:
    return folder / f"stage{stage}_{shard:05d}.npz"


def _save(folder: Path, stage: int, shard: int, side: int, single: bool) -> None:
    """Renders one shard and moves it into place whole."""
    images = np.empty((SHARD, side, side, 3), np.uint8)
    labels = np.empty((SHARD, len(NAMES)), np.uint8)
    first = TRAIN_SEEDS.start + stage * STAGE_SEEDS + shard * SHARD
    for row in range(SHARD):
        scene = render(first + row, side, single)
        images[row], labels[row] = np.asarray(scene.image), labels_of(scene)
    part = folder / "part.npz"
    np.savez(part, images=images, labels=labels)
    part.replace(_path(folder, stage, shard))


def _work(folder: Path, jobs: list[Job], reached, parent: int) -> None:
    """Renders the jobs in order, at most AHEAD beyond where the trainer is."""
    for number, (stage, shard, side, single) in enumerate(jobs):
        while number > reached.value + AHEAD:
            if os.getppid() != parent:
                return
            time.sleep(0.2)
        if os.getppid() != parent:
            return
        if number >= reached.value - WINDOW and not _path(folder, stage, shard).exists():
            _save(folder, stage, shard, side, single)
        if number > WINDOW + AHEAD:
            _path(folder, *jobs[number - WINDOW - AHEAD][:2]).unlink(missing_ok=True)


class Shards:
    """Hands out shards by (stage, shard); starts the worker that renders them.

    jobs: every shard of the whole run, in the order they are first needed.
    """

    def __init__(self, folder: Path, jobs: list[Job], start: tuple[int, int]):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._number = {job[:2]: number for number, job in enumerate(jobs)}
        self._forget_what_is_over()
        self._cache: tuple[tuple[int, int], np.ndarray, np.ndarray] | None = None
        context = multiprocessing.get_context("spawn")
        self._reached = context.Value("q", self._number[start])
        arguments = (folder, jobs, self._reached, os.getpid())
        self._worker = context.Process(target=_work, args=arguments, daemon=True)
        self._worker.start()

    def _forget_what_is_over(self) -> None:
        """Deletes the shards of stages before the first job's, which the worker knows nothing of."""
        wanted = {_path(self._folder, *key) for key in self._number}
        for path in self._folder.glob("stage*.npz"):
            if path not in wanted:
                path.unlink()

    def get(self, stage: int, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [SHARD, S, S, 3] and labels uint8 [SHARD, C]; waits for the worker."""
        key = (stage, shard)
        if self._cache is None or self._cache[0] != key:
            self._cache = None
            self._reached.value = max(self._reached.value, self._number[key])
            path = _path(self._folder, stage, shard)
            while not path.exists():
                if not self._worker.is_alive():
                    raise RuntimeError(f"the render worker ended before {path.name}")
                time.sleep(0.1)
            with np.load(path) as file:
                self._cache = (key, file["images"], file["labels"])
        return self._cache[1], self._cache[2]
