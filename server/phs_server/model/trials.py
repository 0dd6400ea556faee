"""Which of several ways to compute the same is fastest on this machine: found by trying, once, and remembered.

No rule about processors replaces it. Of float32 products on AMD, MKL takes 96 ms where oneDNN takes 42 with AVX-512,
and 57 where oneDNN takes 65 with AVX2 alone.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from phs_server.model.cache import Cache

Way = Callable[..., Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# For one trial, and its rounds: with fewer a result is not worth remembering. Nor is it where other programs had the
# processor, so that this thread had it for less than this share of the time.
_TRIAL_SECONDS, _FEWEST_ROUNDS, _MOST_ROUNDS, _STEADY = 0.2, 3, 50, 0.9
# What keeps libraries from using instructions that the processor has.
_LIMITS = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "ATEN_CPU_CAPABILITY",
)


class Trials:
    """Trials of one precision.

    Args:
        seconds: for all of them together. After that, each way is timed once and no more.

    Attributes:
        found: what was tried -> the name of the fastest way.
        seconds: spent on trying.
    """

    def __init__(self, dtype: torch.dtype, seconds: float = 1.0) -> None:
        self._dtype = dtype
        self._most_seconds = seconds
        self._cache = Cache("kernels")
        self.found: dict[str, str] = {}
        self.seconds = 0.0

    def fastest(
        self, what: str, ways: Mapping[str, Callable[[], Way]], inputs: Callable[[], tuple[Tensor, ...]]
    ) -> str:
        """The name of the fastest way.

        Args:
            what: the product and its shape, for the log and for later starts.
            ways: name -> makes it. The first is the reference: what differs from it, or raises, is out.
            inputs: makes the arguments.
        """
        if what not in self.found:
            key = f"{what}, {str(self._dtype).removeprefix('torch.')}, {_threads()}, {_machine()}"
            name = self._cache.get(key)
            if not isinstance(name, str) or name not in ways:
                began = time.monotonic()
                name, is_sure = self._try(ways, inputs())
                self.seconds += time.monotonic() - began
                if is_sure:
                    self._cache.put(key, name)
            self.found[what] = name
        return self.found[what]

    @torch.inference_mode()
    def _try(self, ways: Mapping[str, Callable[[], Way]], inputs: tuple[Tensor, ...]) -> tuple[str, bool]:
        """The fastest way's name, and whether another trial would most likely say the same."""
        runs = self._agreeing(ways, inputs)
        if not runs:
            return next(iter(ways)), False
        best = dict.fromkeys(runs, (math.inf, 0.0))
        began, rounds = time.monotonic(), 0
        while rounds < _MOST_ROUNDS:
            spent = time.monotonic() - began
            if rounds and self.seconds + spent > self._most_seconds:
                break
            if rounds >= _FEWEST_ROUNDS and spent > _TRIAL_SECONDS:
                break
            for name, way in runs.items():
                start, cpu = time.perf_counter(), time.thread_time()
                way(*inputs)
                best[name] = min(best[name], (time.perf_counter() - start, time.thread_time() - cpu))
            rounds += 1
        steady = all(cpu >= _STEADY * seconds for seconds, cpu in best.values())
        return min(best, key=best.__getitem__), steady and rounds >= _FEWEST_ROUNDS

    def _agreeing(self, ways: Mapping[str, Callable[[], Way]], inputs: tuple[Tensor, ...]) -> dict[str, Way]:
        """The ways that give what the first gives; each has run once, so that what it makes on first use is made."""
        runs: dict[str, Way] = {}
        expected: Tensor | None = None
        for name, make in ways.items():
            with suppress(AttributeError, NotImplementedError, RuntimeError):
                way = make()
                result = way(*inputs)
                expected = result if expected is None else expected
                if agree(result, expected):
                    runs[name] = way
        return runs


def agree(result: Tensor, expected: Tensor) -> bool:
    """Whether two results of one product are the same but for rounding."""
    largest = max(1.0, float(expected.abs().max()))
    return float((result - expected).abs().max()) < TOLERANCE[expected.dtype] * largest


def _threads() -> str:
    return f"{torch.get_num_threads()} threads"


@cache
def _machine() -> str:
    """The processor with its instructions and the limits set to them, and torch's version."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    parts = [facts.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping", "flags")]
    parts += [os.environ.get(name, "") for name in _LIMITS]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"{facts.get('model name', platform.machine())} ({digest}), torch {torch.__version__}"
