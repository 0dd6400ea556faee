"""What the benchmarks share: random checkpoints and photos made on the spot, interleaved timing, tables."""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import torch
import transformers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from phs_server.model.devices import available_cores

Clock = Callable[[], float]

REPO = Path(__file__).resolve().parents[1]
_PROCESSOR = {
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_DINOV2 = {
    "small": {"hidden_size": 384, "num_attention_heads": 6},
    "base": {},
    "large": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24},
    "giant": {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 40, "use_swiglu_ffn": True},
}


def dinov2(size: str, directory: Path) -> Path:
    """A DINOv2 checkpoint of random weights, patch 14, 224 px: speed does not depend on the values."""
    return _saved(transformers.Dinov2Model(transformers.Dinov2Config(**_DINOV2[size])), directory)


def clip_b32(directory: Path) -> Path:
    """A CLIP ViT-B/32 checkpoint of random weights, both halves."""
    return _saved(transformers.CLIPModel(transformers.CLIPConfig()), directory)


def _saved(model: transformers.PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR))
    return directory


def photos(count: int, width: int = 500, height: int = 375) -> list[bytes]:
    """JPEGs with the spectrum of photographs (amplitude 1/f), about 90 kB each at 500x375."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    files = []
    for _ in range(count):
        noise = rng.standard_normal((3, height, width))
        planes = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
        planes = 128 + 50 * planes / planes.std(axis=(1, 2), keepdims=True)
        buffer = io.BytesIO()
        pixels = planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    return files


def add_clock_flags(parser: argparse.ArgumentParser, seconds: float) -> None:
    """--seconds, and --cpu-time for machines that do other work as well."""
    parser.add_argument("--seconds", type=float, default=seconds, help="per row (default: %(default)g)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one torch thread, and its processor time in place of wall time: fair on a machine that others use",
    )


def set_clock(arguments: argparse.Namespace) -> Clock:
    """Sets torch's threads to fit the clock that `--cpu-time` chooses, and returns it."""
    torch.set_num_threads(1 if arguments.cpu_time else available_cores())
    return time.thread_time if arguments.cpu_time else time.perf_counter


def interleaved(
    contenders: dict[str, Callable[[], object]], seconds: float, clock: Clock = time.perf_counter, rounds: int = 3
) -> dict[str, tuple[float, float]]:
    """Times contenders in turn, so that what else the machine does hits all alike.

    Args:
        seconds: how long to go on, but at least `rounds` times through all.
        clock: what is measured, in seconds.

    Returns:
        name -> (median seconds, median of this one's speed over the first contender's in the same round).
    """
    for run in contenders.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    names = list(contenders)
    while time.perf_counter() - start < seconds or len(taken[names[0]]) < rounds:
        for name in names:
            before = clock()
            contenders[name]()
            taken[name].append(clock() - before)
    first = taken[names[0]]
    return {
        name: (
            statistics.median(times),
            statistics.median(base / own for base, own in zip(first, times, strict=True)),
        )
        for name, times in taken.items()
    }


@contextmanager
def server(model: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """A phs-server process of its own; yields its address and the process once it is healthy, and ends it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "server")])}
    port = free_port()
    command = [sys.executable, "-m", "phs_server", "--model", str(model), "--port", str(port), *flags]
    process = subprocess.Popen([*command, "--log-level", "warning"], env=environment)
    try:
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {process.returncode}")
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=5)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                except grpc.RpcError:
                    pass
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


def process_seconds(pid: int) -> float:
    """Processor time that a process of this machine and its children, which decode, have used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = (task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children"))
    return own + sum(process_seconds(int(child)) for some in children for child in some)


def free_port() -> int:
    """A TCP port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine() -> str:
    """One line for the head of a table: where and how loaded."""
    model = platform.processor() or "CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return (
        f"{model}, {cores} cores{device}; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"load average {load:.1f} at the end ({load / (cores or 1):.1f} per core)"
    )


def clock_name(arguments: argparse.Namespace) -> str:
    """For a table's title."""
    return "processor time of one thread" if arguments.cpu_time else f"wall time, {torch.get_num_threads()} threads"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table on standard output."""
    print(f"\n### {title}\n\n{machine()}\n")
    print("| " + " | ".join(header) + " |")
    print("| " + " | ".join("---" for _ in header) + " |")
    for row in rows:
        print("| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    sys.stdout.flush()
