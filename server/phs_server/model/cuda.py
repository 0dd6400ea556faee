"""One GPU: copies that overlap computation, and one CUDA graph per batch size. Nothing here runs without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Forward = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class _Graph:
    """A captured forward: replaying it reads `inputs` and fills `outputs`."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]


class CudaRunner:
    """Runs a function of a batch on one GPU. Thread-safe.

    `run` holds its lock only while it enqueues work. With two threads calling it, one batch is stacked, copied in and
    copied back while the GPU computes the other.

    Args:
        forward: tensors [B, ...] to tensors [B, ...], all on `device`; rows must not depend on each other. The last one
            stays on the device.
        lock: held around it; to be held around whatever else runs the same modules.
    """

    def __init__(self, forward: Forward, device: torch.device, lock: threading.Lock) -> None:
        self._forward = forward
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._compute = torch.cuda.Stream(device)
        self._graphs: dict[int, _Graph] = {}
        # Graphs share their memory: on one stream, results are copied out before the next replay overwrites them.
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = lock

    @torch.inference_mode()
    def capture(self, *arrays: np.ndarray) -> None:
        """Records a graph for batches of this size and dtype; smaller batches are padded up to it.

        Raises:
            torch.OutOfMemoryError, RuntimeError: too large, or the model cannot be captured.
        """
        with self._lock, torch.cuda.device(self._device):
            inputs = [torch.from_numpy(array).to(self._device) for array in arrays]
            self._compute.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._compute):
                # cuBLAS and SDPA choose and set up their kernels in the first calls, which no graph may record.
                for _ in range(3):
                    self._forward(*inputs)
                self._compute.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, self._pool, self._compute, "thread_local"):
                    outputs = self._forward(*inputs)
            self._graphs[len(arrays[0])] = _Graph(graph, inputs, outputs)

    @torch.inference_mode()
    def run(self, *arrays: np.ndarray, keep: bool = False) -> tuple[list[np.ndarray], Tensor | None]:
        """Runs one batch: arrays [B, ...] to arrays [B, ...], and the last output as a tensor if it is to be kept."""
        count = len(arrays[0])
        size = min((size for size in self._graphs if size >= count), default=count)
        pinned = [_pinned(array, size) for array in arrays]
        with self._lock, torch.cuda.device(self._device):
            with torch.cuda.stream(self._copies):
                inputs = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
            self._compute.wait_stream(self._copies)
            with torch.cuda.stream(self._compute):
                for tensor in inputs:
                    tensor.record_stream(self._compute)
                *outputs, last = self._launch(size, inputs)
                results = [_copied_back(output) for output in outputs]
                # A graph's next replay overwrites its outputs.
                kept = last[:count].clone() if keep else None
                finished = torch.cuda.Event()
                finished.record()
        finished.synchronize()
        return [result[:count].numpy() for result in results], kept

    def _launch(self, size: int, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        captured = self._graphs.get(size)
        if captured is None:
            return self._forward(*inputs)
        for target, source in zip(captured.inputs, inputs, strict=True):
            target.copy_(source)
        captured.graph.replay()
        return captured.outputs


def _pinned(array: np.ndarray, size: int) -> Tensor:
    """The batch in page-locked memory, padded to `size` rows with its first row."""
    source = torch.from_numpy(array)
    pinned = torch.empty((size, *array.shape[1:]), dtype=source.dtype, pin_memory=True)
    pinned[: len(array)] = source
    pinned[len(array) :] = source[:1]
    return pinned


def _copied_back(output: Tensor) -> Tensor:
    """A page-locked copy that is complete once the stream gets there."""
    return torch.empty(output.shape, dtype=output.dtype, pin_memory=True).copy_(output, non_blocking=True)
