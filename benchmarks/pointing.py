"""Another prompt for a picture that the server holds, against encoding the picture: in the engine and through gRPC.

    python -m benchmarks.pointing [--size base] [--seconds 20] [--cpu-time]

Every prompt is another box. Through gRPC the client has one connection, and encodes a picture of 500x375 pixels by its
bytes, or a prompt for it by its digest (`Encoder.open`). --cpu-time counts the processor time of client and server.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import (
    add_clock_flags,
    clock_name,
    dinov2,
    interleaved,
    photos,
    print_table,
    process_seconds,
    server,
    set_clock,
)
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.types import Focus
from phs_milvus.pointing.prompts import Box
from phs_server.model import checkpoint
from phs_server.model.batch import PromptBatch
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine

TOGETHER = 10


def in_engine(model: Path, seconds: float, clock: object) -> list[list[object]]:
    """Rows: milliseconds, and the ratio to encoding."""
    engine = FocusEngine(checkpoint.load(str(model)), resolve_devices("auto")[0], "auto")
    engine.warm_up(TOGETHER)
    pixels, _ = engine.sample_batch(1)
    masks = np.random.default_rng(0).random((TOGETHER, engine.sample_batch(1)[1].masks.shape[1]), np.float32)
    one = PromptBatch(masks[:1], np.array([5]), np.ones(1, np.float32))
    ten = PromptBatch(masks, np.full(TOGETHER, 5), np.ones(TOGETHER, np.float32))
    _, kept = engine.encode_and_keep(pixels, one)
    result = interleaved(
        {
            "encoding the picture": lambda: engine.encode_and_keep(pixels, one),
            "a prompt for it": lambda: engine.encode_kept(kept, one),
            "ten prompts": lambda: engine.encode_kept(kept * TOGETHER, ten),
        },
        seconds,
        clock,
    )
    return [[f"engine, {engine.precision}", name, 1000 * taken, 1 / speed] for name, (taken, speed) in result.items()]


def through_grpc(model: Path, seconds: float, wall: bool) -> list[list[object]]:
    (photo,) = photos(1)
    boxes = itertools.cycle(Box(x, y, x + 90, y + 80) for x in range(0, 400, 40) for y in range(0, 280, 40))
    focus, outputs = Focus(attention_shift=1.0), Outputs(head_weights=True)
    with (
        server(model, "--max-held-bytes", "0") as (forgetful, one),
        server(model) as (address, two),
        Encoder(forgetful, timeout=300) as plain,
        Encoder(address, timeout=300) as encoder,
    ):
        picture = encoder.open(photo)

        def used() -> float:
            return time.process_time() + process_seconds(one.pid) + process_seconds(two.pid)

        result = interleaved(
            {
                "encoding the picture": lambda: plain.encode(photo, next(boxes), focus=focus, outputs=outputs),
                "a prompt for it": lambda: picture.encode(next(boxes), focus=focus, outputs=outputs),
                "encoding it with ten prompts": lambda: plain.encode_prompts(
                    photo, [next(boxes) for _ in range(TOGETHER)], focus=focus, outputs=outputs
                ),
                "ten prompts": lambda: picture.encode_prompts(
                    [next(boxes) for _ in range(TOGETHER)], focus=focus, outputs=outputs
                ),
            },
            seconds,
            time.perf_counter if wall else used,
        )
    return [["gRPC", name, 1000 * taken, 1 / speed] for name, (taken, speed) in result.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("small", "base", "large", "giant"))
    add_clock_flags(parser, seconds=20)
    arguments = parser.parse_args()
    clock = set_clock(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = dinov2(arguments.size, Path(folder))
        rows = in_engine(model, arguments.seconds, clock)
        rows += through_grpc(model, arguments.seconds, clock is time.perf_counter)
    title = f"Another prompt for the same picture, DINOv2 {arguments.size}/14 at 224 px, {clock_name(arguments)}"
    print_table(title, ["where", "what", "ms", "ratio to encoding the picture"], rows)


if __name__ == "__main__":
    main()
