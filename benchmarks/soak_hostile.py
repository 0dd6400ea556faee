"""Good callers alone, then beside every kind of attack (benchmarks.attackers): lost calls, latency, memory.

Good callers are open loop at a third of what the server can take, and try again when they are refused, as the client of
this project does. Prints a Markdown table, and exits 1 where a good call was lost or answered wrongly, or memory grew.
"""

from __future__ import annotations

import asyncio
import io
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import grpc
import numpy as np
from PIL import Image

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from tests.checkpoints import save_checkpoint
from tests.servers import REPO, ServerProcess

PHOTOS = 16
LOAD = 1 / 3
QUIET_SHARE = 0.2
CAPACITY_SECONDS, CAPACITY_CALLERS = 5.0, 16
# A call that is refused is tried again for so long; then it counts as lost.
PATIENCE_SECONDS = 30.0
REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
TOLERANCE = 1e-4
MEMORY_GROWTH = 1.15


@dataclass
class Phase:
    """What happened to good calls."""

    name: str
    latencies: list[float] = field(default_factory=list)
    refusals: int = 0
    lost: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.latencies) or [float("nan")]
        return 1000 * ordered[int(share * (len(ordered) - 1))]


class HostileSoak:
    """One server, good callers, and for the larger part of the time attackers."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.photos = [photo(index) for index in range(PHOTOS)]
        self.expected: list[np.ndarray] = []
        self.phase = Phase("")

    async def run(self, seconds: float) -> tuple[float, list[Phase]]:
        """(capacity in images per second, the phases)."""
        async with grpc.aio.insecure_channel(self.server.address, [("grpc.enable_retries", 0)]) as channel:
            stub = pb_grpc.FocusEncoderStub(channel)
            self.expected = [embedding(await stub.Encode(pb.EncodeRequest(image=image))) for image in self.photos]
            capacity = await self._capacity(stub)
            quiet = await self._offer(stub, "alone", LOAD * capacity, QUIET_SHARE * seconds)
            command = [sys.executable, "-m", "benchmarks.attackers", self.server.address]
            attackers = subprocess.Popen(command, cwd=REPO)
            try:
                beside = await self._offer(stub, "beside attackers", LOAD * capacity, (1 - QUIET_SHARE) * seconds)
                if attackers.poll() is not None:
                    beside.lost.append("the attackers ended")
            finally:
                attackers.kill()
                attackers.wait()
        return capacity, [quiet, beside]

    async def _capacity(self, stub: pb_grpc.FocusEncoderStub) -> float:
        until, done = time.monotonic() + CAPACITY_SECONDS, 0

        async def again_and_again() -> None:
            nonlocal done
            while time.monotonic() < until:
                await stub.Encode(pb.EncodeRequest(image=self.random.choice(self.photos)), timeout=PATIENCE_SECONDS)
                done += 1

        await asyncio.gather(*(again_and_again() for _ in range(CAPACITY_CALLERS)))
        return done / CAPACITY_SECONDS

    async def _offer(self, stub: pb_grpc.FocusEncoderStub, name: str, rate: float, seconds: float) -> Phase:
        """Open loop, Poisson arrivals."""
        phase, running = Phase(name), set()
        began = due = looked = time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            if now - looked > 0.5:
                looked = now
                phase.memory.append(self.server.resident_mib)
            if due > now:
                await asyncio.sleep(min(due - now, 0.5))
                continue
            due += self.random.expovariate(rate)
            task = asyncio.create_task(self._good(stub, phase))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        return phase

    async def _good(self, stub: pb_grpc.FocusEncoderStub, phase: Phase) -> None:
        index, started = self.random.randrange(PHOTOS), time.monotonic()
        while True:
            try:
                answer = await stub.Encode(pb.EncodeRequest(image=self.photos[index]), timeout=PATIENCE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() not in REFUSED or time.monotonic() - started > PATIENCE_SECONDS:
                    phase.lost.append(f"{error.code().name}: {error.details()}")
                    return
                phase.refusals += 1
                await asyncio.sleep(self.random.uniform(0.05, 0.2))
                continue
            phase.latencies.append(time.monotonic() - started)
            if not np.allclose(embedding(answer), self.expected[index], atol=TOLERANCE):
                phase.lost.append("another image's embedding")
            return


def photo(seed: int) -> bytes:
    """A JPEG of 1600x1200, so that the server has work to do and the sender has little."""
    blocks = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((1600, 1200), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def embedding(answer: pb.EncodeResponse) -> np.ndarray:
    return np.frombuffer(answer.embedding.data, np.float32)


def report(capacity: float, phases: list[Phase]) -> list[str]:
    """Prints the table; returns what is wrong."""
    problems = []
    print(f"\nCapacity {capacity:.0f} images/s; offered {LOAD * capacity:.0f}.\n")
    print(
        "| good callers | calls | refused and tried again | lost | p50 ms | p99 ms | memory, 2nd quarter / end, MiB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for phase in phases:
        memory = phase.memory or [float("nan")]
        quarter = len(memory) // 4
        plateau, end = median(memory[quarter : 2 * quarter] or memory), median(memory[-max(1, len(memory) // 10) :])
        print(
            f"| {phase.name} | {len(phase.latencies)} | {phase.refusals} | {len(phase.lost)} | "
            f"{phase.quantile(0.5):.0f} | {phase.quantile(0.99):.0f} | {plateau:.0f} / {end:.0f} |"
        )
        problems += [f"{phase.name}: {text}" for text in phase.lost[:10]]
        if not end <= MEMORY_GROWTH * plateau:
            problems.append(f"{phase.name}: resident memory grew from {plateau:.0f} to {end:.0f} MiB")
    return problems


def main(minutes: float, seed: int) -> int:
    """Runs it and prints; the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_checkpoint("dinov2", Path(folder))
        with ServerProcess(model, precision="float32", drain_seconds=10) as server:
            capacity, phases = asyncio.run(HostileSoak(server, seed).run(60 * minutes))
            problems = report(capacity, phases)
            status = server.terminate()
            log = server.log
    print(f"\nSIGTERM at the end: status {status}; {len(log) / 1024:.0f} KiB of log")
    if status != 0:
        problems.append(f"SIGTERM: exit status {status}")
    if "internal error" in log:
        problems.append("the server's log tells of internal errors")
    print("\n" + ("Nothing lost or wrong." if not problems else "WRONG:\n" + "\n".join(problems)))
    return bool(problems)
