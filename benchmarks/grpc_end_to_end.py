"""A bulk stream through gRPC against the same engine fed ready tensors in process.

    python -m benchmarks.grpc_end_to_end [--size base] [--images 64] [--seconds 60] [--cpu-time]

One client process (this one) sends JPEGs of 500x375 pixels and reads embedding and state; the server is a process of
its own. The engine alone runs here, on batches of the server's size. --cpu-time counts the processor time of client and
server together, with one torch thread: decoding, gRPC and Python then cost what they cost, and nothing overlaps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

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
from phs_milvus.contract.errors import PhsError
from phs_server.model import checkpoint
from phs_server.model.devices import resolve_devices
from phs_server.model.engine import FocusEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base", choices=("small", "base", "large", "giant"))
    parser.add_argument("--images", type=int, default=64, help="in one timed stream")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--decode-threads", type=int, default=0)
    add_clock_flags(parser, seconds=60)
    arguments = parser.parse_args()
    wall = set_clock(arguments) is time.perf_counter
    files = photos(32)
    flags = ["--max-batch-size", str(arguments.batch), "--decode-threads", str(arguments.decode_threads)]
    flags += [] if wall else ["--threads", "1"]
    with tempfile.TemporaryDirectory() as folder:
        model = dinov2(arguments.size, Path(folder))
        engine = FocusEngine(checkpoint.load(str(model)), resolve_devices("auto")[0], "auto")
        engine.warm_up(arguments.batch)
        ready = engine.sample_batch(arguments.batch)
        with server(model, *flags) as (address, process), Encoder(address, timeout=300) as encoder:

            def stream() -> None:
                images = (files[index % len(files)] for index in range(arguments.images))
                for result in encoder.encode_many(images, outputs=Outputs(state=True)):
                    if isinstance(result, PhsError):
                        raise result

            def in_process() -> None:
                for _ in range(arguments.images // arguments.batch):
                    engine.encode(*ready)

            clock = time.perf_counter if wall else lambda: time.process_time() + process_seconds(process.pid)
            result = interleaved({"engine": in_process, "stream": stream}, arguments.seconds, clock)
    rates = [arguments.images / result[name][0] for name in ("stream", "engine")]
    header = ["precision", "batch", "gRPC stream, images/s", "engine alone", "stream / engine"]
    title = f"gRPC end to end, DINOv2 {arguments.size}/14 at 224 px, {clock_name(arguments)}"
    print_table(title, header, [[engine.precision, arguments.batch, *rates, result["stream"][1]]])


if __name__ == "__main__":
    main()
