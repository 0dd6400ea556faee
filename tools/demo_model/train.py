"""Trains the demo ViT: multi-label classification of scenes from the [CLS] embedding, no more.

    python -m tools.demo_model.train runs/a                   train, or go on after a kill
    python -m tools.demo_model.train runs/a --from model --stage 1
                                                              begin there with the weights of an exported model
    python -m tools.demo_model.train runs/a --export model    write the checkpoint as it is now

No head is supervised and nothing knows where an object is: the loss is binary cross-entropy of the
categories present, on a linear layer over the final-layernormed [CLS] token, thrown away at export.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTModel

from tools.demo_model.architecture import at_size, cls_embedding, new_model
from tools.demo_model.categories import NAMES
from tools.demo_model.muon import Muon
from tools.demo_model.shards import SHARD, Shards, visit_order

SEED = 0
BATCH = 128
PART = 16  # scenes a thread takes at a time
WARMUP = 100  # steps at the very start
CHECKPOINT_SECONDS = 150
MEAN = STD = 0.5
SHIPPED_PIXELS = 224  # input size at export; the position grid is interpolated to it


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one resolution; the rate falls by a half cosine inside it."""

    pixels: int
    batches: int
    visits: int  # times each rendered scene is shown, with fresh augmentation
    rate: tuple[float, float]  # first and last learning rate
    single: bool = False  # one large object per scene instead of 3-6

    @property
    def side(self) -> int:
        """Side of the rendered scenes, larger than the input so that crops can move."""
        return self.pixels * 9 // 8


# From scratch, scenes of 3-6 objects taught nothing for the first 60,000: the loss stayed at that
# of the category frequencies. A short first stage of single objects gets it going.
STAGES = (
    Stage(96, 1200, 8, (1.5e-3, 1.5e-3), single=True),
    Stage(96, 1300, 6, (1.5e-3, 1.2e-3)),
    Stage(128, 1050, 5, (1.2e-3, 5e-4)),
    Stage(160, 240, 4, (5e-4, 0.0)),
    Stage(128, 1400, 3, (1e-3, 5e-4)),  # the rate up again: a warm restart
    Stage(160, 400, 3, (5e-4, 2e-4)),
    Stage(224, 600, 3, (2e-4, 0.0)),
)


def augment(images: np.ndarray, pixels: int, rng: np.random.Generator) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float [B, 3, P, P]: one crop and flip per batch, colour per image."""
    side = images.shape[1]
    crop = int(rng.integers(round(0.86 * side), side + 1))
    y, x = rng.integers(0, side - crop + 1, 2)
    batch = torch.from_numpy(images[:, y : y + crop, x : x + crop]).permute(0, 3, 1, 2).float()
    batch = F.interpolate(batch, (pixels, pixels), mode="bilinear", antialias=True)
    if rng.random() < 0.5:
        batch = batch.flip(3)
    gain = torch.from_numpy(rng.normal(1, 0.07, (len(images), 3, 1, 1))).float()
    shift = torch.from_numpy(rng.normal(0, 0.04, (len(images), 1, 1, 1))).float()
    return (batch / 255 * gain + shift - MEAN) / STD


def learning_rate(stage: int, step: int) -> float:
    """Half a cosine from the stage's first to its last rate."""
    plan = STAGES[stage]
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.batches))
    return plan.rate[1] + (plan.rate[0] - plan.rate[1]) * cosine


class Trainer:
    """Model, thrown-away classifier, optimisers and position in the schedule."""

    def __init__(self, folder: Path, threads: int, bfloat16: bool, source: Path | None, stage: int):
        self.folder = folder
        self.threads = threads
        self.attention = "demo_matmul" if bfloat16 else "sdpa"
        self.bfloat16 = bfloat16
        # One thread per model copy, each taking the next part of the batch when it is free. Two
        # threads inside every operation would wait for each other hundreds of times a step, which
        # on a machine shared with others is most of the time.
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.stage, self.step, self.total = stage, 0, 0
        self.seconds = 0.0
        torch.manual_seed(SEED)
        self.model = new_model(STAGES[stage].pixels, self.attention)
        self.classifier = nn.Linear(self.model.config.hidden_size, len(NAMES))
        nn.init.constant_(self.classifier.bias, -4.0)  # about log(1/59), as in the first stage
        if (folder / "checkpoint.pt").exists():
            self._resume(torch.load(folder / "checkpoint.pt", weights_only=True))
            return
        if source:
            weights = ViTModel.from_pretrained(source, dtype=torch.float32, add_pooling_layer=False).state_dict()
            self.model.load_state_dict(at_size(weights, STAGES[stage].pixels))
        self._prepare()

    def _resume(self, saved: dict) -> None:
        self.stage, self.step, self.total = saved["stage"], saved["step"], saved["total"]
        self.seconds = saved["seconds"]
        self.model = new_model(STAGES[self.stage].pixels, self.attention)
        self.model.load_state_dict(saved["model"])
        self.classifier.load_state_dict(saved["classifier"])
        self._prepare()
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)

    def _prepare(self) -> None:
        """Model copies for the threads, and the optimisers, for the present resolution."""
        main = nn.ModuleList([self.model, self.classifier])
        self.copies = [main, *(copy.deepcopy(main) for _ in range(self.threads - 1))]
        self.free: queue.SimpleQueue = queue.SimpleQueue()
        for pair in self.copies:
            self.free.put(pair)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        rest = [p for p in self.model.parameters() if p.ndim != 2]  # biases, norms, tables, patch filter
        adam = torch.optim.AdamW([*rest, *self.classifier.parameters()], betas=(0.9, 0.99), weight_decay=0.0)
        self.optimisers = (Muon(matrices, self.pool), adam)

    def next_stage(self) -> None:
        """Enters the next resolution; the optimisers start afresh as one table changes shape."""
        self.stage, self.step = self.stage + 1, 0
        pixels = STAGES[self.stage].pixels
        state = at_size(self.model.state_dict(), pixels)
        self.model = new_model(pixels, self.attention)
        self.model.load_state_dict(state)
        self._prepare()

    def save(self) -> None:
        """Writes the checkpoint whole or not at all."""
        part = self.folder / "checkpoint.part"
        state = {
            "stage": self.stage,
            "step": self.step,
            "total": self.total,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "classifier": self.classifier.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def _backward(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Adds the gradient of one part of the batch to a free copy; returns its share of loss."""
        pair = self.free.get()
        model, classifier = pair
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits = classifier(cls_embedding(model, images))
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels) * len(images) / BATCH
        loss.backward()
        self.free.put(pair)
        return loss.item()

    def train_step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """One update; returns the loss in nats per scene and category."""
        rate = learning_rate(self.stage, self.step) * min(1.0, (self.total + 1) / WARMUP)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        for pair in self.copies:
            pair.zero_grad()
        losses = self.pool.map(self._backward, images.split(PART), labels.split(PART))
        loss = sum(losses)
        main, *others = (list(pair.parameters()) for pair in self.copies)
        with torch.no_grad():
            for parameters in zip(main, *others, strict=True):
                found = [p.grad for p in parameters if p.grad is not None]
                parameters[0].grad = sum(found[1:], found[0])
            nn.utils.clip_grad_norm_(main, 1.0)
            for optimiser in self.optimisers:
                optimiser.step()
            for parameters in zip(main, *others, strict=True):
                for other in parameters[1:]:
                    other.copy_(parameters[0])
        self.step, self.total = self.step + 1, self.total + 1
        return loss


def train(folder: Path, threads: int, bfloat16: bool, source: Path | None, stage: int) -> None:
    """Runs the schedule to its end, from the checkpoint if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(folder, threads, bfloat16, source, stage)
    per_shard = SHARD // BATCH
    orders = [visit_order(i, s.visits, -(-s.batches // per_shard)) for i, s in enumerate(STAGES)]
    jobs = [
        (i, k, s.side, s.single)
        for i, s in enumerate(STAGES)
        for k in range(max(orders[i]) + 1)
        if i >= trainer.stage  # stages that are over are not rendered again
    ]
    needed = max(orders[trainer.stage][: trainer.step // per_shard + 1])
    shards = Shards(folder / "shards", jobs, (trainer.stage, needed))
    losses: list[float] = []
    began = saved = time.monotonic()
    before = trainer.seconds
    while True:
        plan = STAGES[trainer.stage]
        if trainer.step == plan.batches:
            if trainer.stage + 1 == len(STAGES):
                break
            trainer.next_stage()
            continue
        visit, part = divmod(trainer.step, per_shard)
        images, labels = shards.get(trainer.stage, orders[trainer.stage][visit])
        rows = np.random.default_rng((trainer.stage, visit, 1)).permutation(SHARD)
        rows = rows[part * BATCH : (part + 1) * BATCH]
        rng = np.random.default_rng((trainer.stage, trainer.step, 2))
        batch = augment(images[rows], plan.pixels, rng)
        losses.append(trainer.train_step(batch, torch.from_numpy(labels[rows]).float()))
        now = time.monotonic()
        trainer.seconds = before + now - began
        if trainer.step % 20 == 0:
            row = (trainer.stage, trainer.step, round(trainer.seconds), np.mean(losses))
            with (folder / "loss.csv").open("a", newline="") as file:
                csv.writer(file).writerow((*row[:3], f"{row[3]:.5f}"))
            print(*row, flush=True)
            losses.clear()
        if now - saved > CHECKPOINT_SECONDS:
            trainer.save()
            saved = now
    trainer.save()


def export(folder: Path, target: Path, pixels: int) -> None:
    """Writes the checkpoint as a transformers directory, float16, at an input of `pixels`."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = new_model(pixels)
    model.load_state_dict(at_size(saved["model"], pixels))
    model.config._attn_implementation = None
    model.half().save_pretrained(target)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": pixels, "width": pixels},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    (target / "model.safetensors").chmod(0o644)
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train or export the demo model.")
    parser.add_argument("folder", type=Path, help="checkpoint, loss curve and rendered shards")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model, do not train")
    parser.add_argument("--pixels", type=int, default=SHIPPED_PIXELS, help="exported input size")
    parser.add_argument("--from", type=Path, dest="source", metavar="DIR", help="first weights")
    parser.add_argument("--stage", type=int, default=0, help="where to begin; with --from, as single objects are known")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true", help="faster on CPUs with AVX512-BF16, far slower on others")
    args = parser.parse_args()
    if args.export:
        export(args.folder, args.export, args.pixels)
    else:
        train(args.folder, args.threads, args.bfloat16, args.source, args.stage)


if __name__ == "__main__":
    main()
