"""What decoding in a child process costs: per picture, and in the stream of a whole server.

    python -m benchmarks.decoding [--seconds 8] [--model DIRECTORY] [--images 256]

Both ways alternate in one run, so that what else the machine does hits both alike; the ratios are what counts. The
stream is the pipeline without gRPC, `--in-flight` images at a time, by default through a DINOv2 small of random
weights: the smaller the model, the more decoding counts.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import dinov2, interleaved, photos, print_table, process_seconds
from phs_milvus.contract import pixels
from phs_milvus.contract.cost import cost_of
from phs_milvus.contract.decoding import Decoder
from phs_milvus.contract.headers import read_header
from phs_milvus.contract.types import Focus, Limits, Pointing
from phs_server.config import Settings
from phs_server.flow import pipeline as flow
from phs_server.flow.preprocess import Decode
from phs_server.flow.views import Asked

SIDE = 224
BICUBIC = Image.Resampling.BICUBIC


def one_by_one(seconds: float) -> list[list[object]]:
    """Rows: the header, decoding here, decoding in a child, and the difference, in milliseconds."""
    files = {f"JPEG {width}x{height}": photos(1, width, height)[0] for width, height in ((500, 375), (4000, 3000))}
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photos(1)[0])).save(buffer, "PNG")
    files["PNG 500x375"] = buffer.getvalue()
    rows = []
    with Decoder() as decoder:
        decoder.start()
        for name, data in files.items():
            header = read_header(data)
            cost = cost_of(header, SIDE, Limits.image_pixels)
            here, child = f"{name}, here", f"{name}, child"
            times = interleaved(
                {
                    here: lambda header=header, cost=cost: pixels.fitted(header, SIDE, BICUBIC, None, cost.scale),
                    child: lambda header=header, cost=cost: decoder.fitted(header, cost, SIDE, BICUBIC),
                    "header": lambda data=data: read_header(data),
                },
                seconds,
            )
            milliseconds = [1000 * times[key][0] for key in ("header", here, child)]
            rows.append([name, len(data) // 1000, *milliseconds, milliseconds[2] - milliseconds[1]])
    return rows


def stream(model: str, count: int, in_flight: int, rounds: int) -> list[list[object]]:
    """Rows: images per second of the pipeline with decoding here and in children, processor time of all processes per
    image in milliseconds, and the ratio of each to decoding here."""
    files = photos(min(count, 64))
    pipelines = {}
    for name in ("here", "child"):
        pipelines[name] = made = flow.Pipeline(Settings(model=model, precision="float32"))
        made.warm_up()
    _decode_here(pipelines["here"])
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    costs: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(rounds):
        for name, made in pipelines.items():
            used, started = _processor_seconds(made), time.perf_counter()
            asyncio.run(_encode_all(made, files, count, in_flight))
            rates[name].append(count / (time.perf_counter() - started))
            costs[name].append(1000 * (_processor_seconds(made) - used) / count)
    for made in pipelines.values():
        made.close(5)
    return [
        [name, statistics.median(rates[name]), _ratio(rates, name), statistics.median(costs[name]), _ratio(costs, name)]
        for name in pipelines
    ]


def _ratio(values: dict[str, list[float]], name: str) -> float:
    return statistics.median(own / here for own, here in zip(values[name], values["here"], strict=True))


def _processor_seconds(pipeline: flow.Pipeline) -> float:
    children = [decoder._child.pid for decoder in pipeline._decoders if decoder._child is not None]
    return time.process_time() + sum(map(process_seconds, children))


def _decode_here(pipeline: flow.Pipeline) -> None:
    """Makes a pipeline decode on its own threads, as servers did before there were children."""
    threads = len(pipeline._decodes._workers)
    pipeline._decodes.close(5)
    shape = pipeline._preprocessing
    decode = Decode(shape.image_size, shape.resample, pipeline._limits)
    pipeline._decodes = flow.Batcher(
        *[partial(pipeline._views, decode)] * threads,
        max_batch_size=1,
        max_delay_ms=0,
        max_queue_size=1024,
        max_queue_bytes=2**30,
        name="decode",
    )


async def _encode_all(pipeline: flow.Pipeline, files: list[bytes], count: int, in_flight: int) -> None:
    room = asyncio.Semaphore(in_flight)

    async def one(index: int) -> np.ndarray | None:
        async with room:
            asked = Asked(files[index % len(files)], b"", [Pointing(None, Focus())])
            return (await pipeline.encode(asked, bulk=True))[0].embedding

    await asyncio.gather(*(one(index) for index in range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="for each picture (default: %(default)g)")
    parser.add_argument("--model", help="a checkpoint folder (default: a DINOv2 small of random weights)")
    parser.add_argument("--images", type=int, default=128, help="in each round (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    header = ["picture", "kB", "header, ms", "decoded here, ms", "in a child, ms", "difference, ms"]
    print_table("One picture at a time, to 224 pixels", header, one_by_one(arguments.seconds))
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or str(dinov2("small", Path(folder) / "small"))
        rows = stream(model, arguments.images, arguments.in_flight, arguments.rounds)
    print_table("A stream of JPEGs of 500x375", ["decoded", "images/s", "ratio", "processor, ms/image", "ratio"], rows)


if __name__ == "__main__":
    main()
