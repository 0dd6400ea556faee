"""Twice the load the server can take, with hostile, cancelled and expired requests, a kill -9 and a SIGTERM restart.

    .venv/bin/python benchmarks/soak.py --minutes 10          # .venv as `make test` makes it
    .venv/bin/python benchmarks/soak.py --hostile --minutes 30      # good callers beside attackers; see soak_hostile.py

Starts a server of a tiny checkpoint made here as a process on loopback, measures what it can take with good images
only, then offers twice that, open loop: requests are sent when they are due, whether or not the ones before are
answered. Beside them one bulk encode runs through everything. Prints a Markdown table, and exits 1 where a request was
lost, hung, answered twice, answered wrongly, or failed for a reason it should not have, or where memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from benchmarks import soak_hostile
from benchmarks.soak_hostile import embedding, photo
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import PhsError
from tests.checkpoints import save_checkpoint
from tests.hostile.make import ACCEPTED, EITHER, Case, make
from tests.servers import ServerProcess

GOOD_IMAGES = 16
GOOD_TIMEOUT = 20.0
# Of the requests: the rest are good.
HOSTILE, CANCELLED, EXPIRED = 0.15, 0.10, 0.10
OVERLOAD = 2.0
CAPACITY_SECONDS, CAPACITY_CALLERS = 8.0, 16
# A call may take this much longer than its deadline before it counts as hung.
HUNG_SECONDS = 10.0
IN_FLIGHT = 4000
MEMORY_GROWTH = 1.10
TOLERANCE = 1e-4
BUSY = ("RESOURCE_EXHAUSTED", "REFUSED_STREAM")
# Where in the run: kill -9, SIGTERM.
KILL_AT, TERMINATE_AT = 0.15, 0.35
# UNAVAILABLE is right from a strike until so long after the server is ready again.
RECONNECT_SECONDS = 5.0


@dataclass
class Tally:
    """What happened to the requests of one kind, by outcome."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def add(self, kind: str, outcome: str) -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1


@dataclass
class Outage:
    """One time the server was struck down: from when until when UNAVAILABLE is the right answer."""

    how: str
    started: float
    ended: float = float("inf")
    exit_status: int | None = None


class Soak:
    def __init__(self, server: ServerProcess, seed: int, seconds: float) -> None:
        self.server = server
        self.seconds = seconds
        self.random = random.Random(seed)
        self.tally = Tally()
        self.outages: list[Outage] = []
        self.memory: list[tuple[float, float]] = []
        self.good = [photo(index) for index in range(GOOD_IMAGES)]
        # Those that cost megabytes or seconds each are in tests/test_server_hostile.py.
        self.hostile = [case for case in make(seed) if len(case.image) < 300_000 and case.mask is None]
        self.expected: list[np.ndarray] = []
        self.bulk_results = 0
        self.bulk_problem = ""
        self.sent = 0

    async def run(self) -> float:
        """The whole thing; returns the capacity in images per second."""
        options = [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 1000)]
        async with grpc.aio.insecure_channel(self.server.address, options) as channel:
            stub = pb_grpc.FocusEncoderStub(channel)
            self.expected = [embedding(await stub.Encode(pb.EncodeRequest(image=image))) for image in self.good]
            capacity = await self._capacity(stub)
            self.began = time.monotonic()
            stop = threading.Event()
            helpers = [
                threading.Thread(target=work, args=(stop,), daemon=True)
                for work in (self._strike, self._watch_memory, self._bulk)
            ]
            for helper in helpers:
                helper.start()
            await self._offer(stub, OVERLOAD * capacity)
            stop.set()
            for helper in helpers:
                await asyncio.to_thread(helper.join, 120)
        return capacity

    async def _capacity(self, stub: pb_grpc.FocusEncoderStub) -> float:
        until, done = time.monotonic() + CAPACITY_SECONDS, 0

        async def call_again_and_again() -> None:
            nonlocal done
            while time.monotonic() < until:
                await stub.Encode(pb.EncodeRequest(image=self.random.choice(self.good)), timeout=GOOD_TIMEOUT)
                done += 1

        started = time.monotonic()
        await asyncio.gather(*(call_again_and_again() for _ in range(CAPACITY_CALLERS)))
        return done / (time.monotonic() - started)

    async def _offer(self, stub: pb_grpc.FocusEncoderStub, rate: float) -> None:
        """Open loop, Poisson arrivals."""
        running: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while (now := time.monotonic()) - self.began < self.seconds:
            if due > now:
                await asyncio.sleep(due - now)
                continue
            due = max(due + self.random.expovariate(rate), now - 1.0)
            if len(running) >= IN_FLIGHT:
                self.tally.add("not sent: too many unanswered", "")
                continue
            task = asyncio.create_task(self._one(stub))
            running.add(task)
            task.add_done_callback(running.discard)
            self.sent += 1
        await asyncio.gather(*running)

    async def _one(self, stub: pb_grpc.FocusEncoderStub) -> None:
        draw = self.random.random()
        if draw < HOSTILE:
            await self._hostile(stub, self.random.choice(self.hostile))
        elif draw < HOSTILE + CANCELLED:
            await self._good(stub, "cancelled", cancel_after=self.random.uniform(0, 0.2))
        elif draw < HOSTILE + CANCELLED + EXPIRED:
            await self._good(stub, "expired", timeout=self.random.uniform(0.001, 0.1))
        else:
            await self._good(stub, "good")

    async def _good(
        self,
        stub: pb_grpc.FocusEncoderStub,
        kind: str,
        timeout: float = GOOD_TIMEOUT,
        cancel_after: float | None = None,
    ) -> None:
        index = self.random.randrange(GOOD_IMAGES)
        started = time.monotonic()
        call = stub.Encode(pb.EncodeRequest(image=self.good[index]), timeout=timeout)
        if cancel_after is not None:
            asyncio.get_running_loop().call_later(cancel_after, call.cancel)
        outcome, answer = await outcome_of(call, timeout)
        self.tally.add(kind, outcome)
        if outcome == "OK":
            if kind == "good":
                self.tally.latencies.append(time.monotonic() - started)
            if not np.allclose(embedding(answer), self.expected[index], atol=TOLERANCE):
                self.tally.wrong.append(f"{kind}: another image's embedding")
        allowed = {"good": (), "cancelled": ("CANCELLED",), "expired": ("DEADLINE_EXCEEDED",)}[kind]
        self._judge(kind, outcome, ("OK", *BUSY, *allowed), started)

    async def _hostile(self, stub: pb_grpc.FocusEncoderStub, case: Case) -> None:
        started = time.monotonic()
        request = pb.EncodeRequest(image=case.image, focus=pb.Focus(heads_on=case.heads_on))
        outcome, _ = await outcome_of(stub.Encode(request, timeout=GOOD_TIMEOUT), GOOD_TIMEOUT)
        kind = "odd" if case.expected == ACCEPTED else "hostile"
        self.tally.add(kind, outcome)
        allowed = {ACCEPTED: ("OK",), EITHER: ("OK", "INVALID_ARGUMENT")}.get(case.expected, ("INVALID_ARGUMENT",))
        self._judge(f"{kind} {case.name}", outcome, (*allowed, *BUSY), started)

    def _judge(self, what: str, outcome: str, allowed: tuple[str, ...], started: float) -> None:
        if outcome in allowed:
            return
        struck = any(outage.started <= time.monotonic() and started <= outage.ended for outage in self.outages)
        # gRPC answers CANCELLED to a call that arrives in the moment its server begins to shut down.
        if outcome in ("UNAVAILABLE", "CANCELLED") and struck:
            return
        self.tally.wrong.append(f"{what}: {outcome}")

    def _strike(self, stop: threading.Event) -> None:
        for how, share in (("kill", KILL_AT), ("terminate", TERMINATE_AT)):
            if stop.wait(max(0.0, self.began + share * self.seconds - time.monotonic())):
                return
            outage = Outage(how, time.monotonic())
            self.outages.append(outage)
            outage.exit_status = getattr(self.server, how)()
            self.server.restart()
            self.server.wait_until_ready()
            outage.ended = time.monotonic() + RECONNECT_SECONDS

    def _watch_memory(self, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            try:
                self.memory.append((time.monotonic(), self.server.resident_mib))
            except (OSError, IndexError):
                continue  # between two processes

    def _bulk(self, stop: threading.Event) -> None:
        """One encode_many through everything: each item once, in order, right."""
        order = random.Random(1)
        sent: list[int] = []

        def images() -> Iterator[bytes]:
            while not stop.is_set():
                sent.append(order.randrange(GOOD_IMAGES))
                yield self.good[sent[-1]]

        try:
            with Encoder(self.server.address, timeout=120) as encoder:
                for result in encoder.encode_many(images(), in_flight=8):
                    if isinstance(result, PhsError):
                        raise result
                    if not np.allclose(result.embedding, self.expected[sent[self.bulk_results]], atol=TOLERANCE):
                        raise ValueError(f"item {self.bulk_results} has another item's embedding")
                    self.bulk_results += 1
            if self.bulk_results != len(sent):
                self.bulk_problem = f"{len(sent)} items sent, {self.bulk_results} results"
        except Exception as error:
            self.bulk_problem = f"{type(error).__name__}: {error}"

    def plateau_and_end(self) -> tuple[float, float]:
        """Median resident MiB of the last process: in the second quarter of its life, and in the last tenth."""
        start = self.outages[-1].ended
        values = [mib for at, mib in self.memory if at > start]
        if len(values) < 20:
            return float("nan"), float("nan")
        quarter = len(values) // 4
        return median(values[quarter : 2 * quarter]), median(values[-len(values) // 10 :])


async def outcome_of(call: grpc.aio.UnaryUnaryCall, timeout: float) -> tuple[str, pb.EncodeResponse | None]:
    """The name of the status, or "HUNG", or "REFUSED_STREAM"."""
    try:
        return "OK", await asyncio.wait_for(call, timeout + HUNG_SECONDS)
    except asyncio.TimeoutError:
        return "HUNG", None
    except asyncio.CancelledError:
        return "CANCELLED", None
    except grpc.RpcError as error:
        # How gRPC itself turns calls away before our server sees them: while cancelled ones are cleared away, a
        # connection has more than max_connection_calls. Seen as UNAVAILABLE; safe to send again.
        refused = "RST_STREAM with error code 7" in (error.details() or "")
        return "REFUSED_STREAM" if refused else error.code().name, None


def report(soak: Soak, capacity: float) -> list[str]:
    """Prints the tables; returns what is wrong."""
    problems = [f"{count}x {text}" for text, count in Counter(soak.tally.wrong).most_common(20)]
    answered = sum(sum(outcomes.values()) for kind, outcomes in soak.tally.outcomes.items() if "not sent" not in kind)
    if answered != soak.sent:
        problems.append(f"{soak.sent} requests sent, {answered} answered")
    if soak.bulk_problem:
        problems.append(f"bulk: {soak.bulk_problem}")
    if len(soak.outages) != 2 or any(outage.ended == float("inf") for outage in soak.outages):
        problems.append("the server was not struck and back twice; give it more minutes")
    elif soak.outages[1].exit_status != 0:
        problems.append(f"SIGTERM: exit status {soak.outages[1].exit_status}")
    codes = sorted({code for outcomes in soak.tally.outcomes.values() for code in outcomes if code})
    print(f"\n| requests | sent | {' | '.join(codes)} |\n|---|{'---:|' * (len(codes) + 1)}")
    for kind, outcomes in sorted(soak.tally.outcomes.items()):
        print(f"| {kind} | {sum(outcomes.values())} | {' | '.join(str(outcomes[code]) for code in codes)} |")
    latencies = sorted(soak.tally.latencies) or [float("nan")]
    quantiles = [f"{1000 * latencies[int(share * (len(latencies) - 1))]:.0f}" for share in (0.5, 0.99)]
    print("\n| measure | value |\n|---|---:|")
    print(f"| capacity, good images only | {capacity:.0f} images/s |")
    print(f"| offered, beside one bulk stream | {soak.sent / soak.seconds:.0f} requests/s for {soak.seconds:.0f} s |")
    print(f"| latency of good requests that were served, p50 / p99 | {' / '.join(quantiles)} ms |")
    print(f"| bulk items, each once and in order | {soak.bulk_results} |")
    for outage in soak.outages:
        name = "kill -9" if outage.how == "kill" else f"SIGTERM (exit status {outage.exit_status})"
        print(f"| {name}, until ready again | {outage.ended - RECONNECT_SECONDS - outage.started:.1f} s |")
    if soak.outages:
        plateau, end = soak.plateau_and_end()
        print(f"| resident memory, plateau / end | {plateau:.0f} / {end:.0f} MiB ({end / plateau - 1:+.1%}) |")
        if not end <= MEMORY_GROWTH * plateau:
            problems.append(f"resident memory grew from {plateau:.0f} to {end:.0f} MiB")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the overload (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hostile", action="store_true", help="good callers alone, then beside every kind of attack")
    options = parser.parse_args()
    if options.hostile:
        return soak_hostile.main(options.minutes, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = save_checkpoint("dinov2", Path(folder))
        with ServerProcess(model, precision="float32", max_calls=32, drain_seconds=10) as server:
            soak = Soak(server, options.seed, 60 * options.minutes)
            capacity = asyncio.run(soak.run())
            problems = report(soak, capacity)
            if "internal error" in server.log:
                problems.append("the server's log tells of internal errors")
    print("\n" + ("Nothing lost, doubled, wrong or hung." if not problems else "WRONG:\n" + "\n".join(problems)))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
