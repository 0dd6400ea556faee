"""Stored states to embeddings under other head weights, and to exact Query-DB scores: a readout, and a product.

Q = queries, K = states, W = distinct head weights, H = heads, D = hidden size, E = embedding size.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from phs_milvus.contract.errors import InvalidInput, ModelError
from phs_milvus.contract.int8_states import BLOCK, Int8States
from phs_milvus.contract.types import MOST_READOUTS, Float32Array, RerankInputs, States
from phs_server.model.batch import on_device
from phs_server.model.readout import Readout

# Rows (distinct head weights x states) read out at once: at most, which bounds memory at about 100 MiB for D=1024
# whatever K is, and at least, below which products are slow. In between it is what takes _SECONDS.
_ROWS, _FEWEST_ROWS = 2048, 256
_SECONDS = 0.1
# Distinct head weights among them.
_WEIGHTS = 32
# Cosines computed at once.
_PRODUCTS = 2**21


class StateReader:
    """Reads states out on one device, in chunks between which it can be stopped. Thread-safe."""

    def __init__(self, readout: Readout, device: torch.device, precision: str) -> None:
        self._readout = readout
        self._device = device
        self._precision = precision
        self._rows = 512

    def read_out(self, states: States, weights: Float32Array, check: Callable[[], None]) -> Float32Array:
        """Embeddings float32 [K, E] of K states under head weights [K, H] or [1, H].

        Args:
            check: as in `rerank`.

        Raises:
            ModelError: an embedding that is not finite.
        """
        parts = []
        for start in range(0, len(states), _FEWEST_ROWS):
            check()
            rows = slice(start, start + _FEWEST_ROWS)
            residual, outputs = _DeviceStates(states[rows], self._device)[:].unbind(1)
            some = on_device(self._device, weights if len(weights) == 1 else weights[rows])
            with torch.inference_mode():
                parts.append(self._readout(residual, outputs, some).cpu().numpy())
        embeddings: Float32Array = np.concatenate(parts)
        if not np.isfinite(embeddings).all():
            raise ModelError(
                f"embeddings of the model in {self._precision} are not finite for these head weights and states; "
                "try --precision float32"
            )
        return embeddings

    @torch.inference_mode()
    def rerank(self, inputs: RerankInputs, check: Callable[[], None] = lambda: None) -> Float32Array:
        """Exact Query-DB scores: every state is read out with each query's head weights.

        Queries with equal head weights share one readout of the candidates, and the readouts for distinct weights go
        through the layers in chunks. Holds the scores and one chunk, however many queries and weights there are.

        Args:
            inputs: embeddings are l2-normalised here.
            check: called between chunks, about every 100 ms on a CPU; what it raises ends the reranking.

        Returns:
            float32 [Q, K], cosine similarity.

        Raises:
            InvalidInput: more distinct head weights x states than one request may ask for.
            ModelError: a score that is not finite.
        """
        distinct, members = _groups(inputs.head_weights)
        _check_readouts(len(distinct), len(inputs.states))
        queries = torch.nn.functional.normalize(on_device(self._device, inputs.embeddings), dim=-1)
        weights, states = on_device(self._device, distinct), _DeviceStates(inputs.states, self._device)
        scores = torch.empty(len(queries), len(states), device=self._device)
        together = min(len(distinct), _WEIGHTS)
        start = 0
        while start < len(states):
            stop = start + max(1, self._rows // together)
            chunk = states[start:stop]
            for first in range(0, len(distinct), together):
                check()
                began = time.monotonic()
                candidates = self._read_out(chunk, weights[first : first + together])
                self._pace(candidates.shape[0] * candidates.shape[1], time.monotonic() - began)
                for rows, theirs in zip(members[first : first + together], candidates, strict=True):
                    for some in rows.split(max(1, _PRODUCTS // len(theirs))):
                        check()
                        scores[some, start:stop] = queries[some] @ theirs.T
            start = stop
        if not scores.isfinite().all():
            raise ModelError(
                f"scores of the model in {self._precision} are not finite for these head weights and states; "
                "try --precision float32"
            )
        return scores.clamp_(-1, 1).cpu().numpy()

    def _read_out(self, states: Tensor, weights: Tensor) -> Tensor:
        """states [K, 2, D] and head weights [W, H] -> embeddings [W, K, E]."""
        residual, outputs = (part.repeat(len(weights), 1) for part in states.unbind(1))
        embeddings = self._readout(residual, outputs, weights.repeat_interleave(len(states), dim=0))
        return embeddings.unflatten(0, (len(weights), len(states)))

    def _pace(self, rows: int, seconds: float) -> None:
        """Sizes the chunks to come by how long one took. On a GPU, which only queues the work, they stay large."""
        if rows >= self._rows // 2:
            aim = int(rows * _SECONDS / max(seconds, 1e-6))
            self._rows = max(_FEWEST_ROWS, min(aim, 2 * self._rows, _ROWS))


class _DeviceStates:
    """States on a device as they were sent; a slice of them is float16 [k, 2, D]."""

    def __init__(self, states: States, device: torch.device) -> None:
        self._scales: Tensor | None = None
        if isinstance(states, Int8States):
            self._numbers, self._scales = on_device(device, states.values), on_device(device, states.scales)
        else:
            self._numbers = on_device(device, states)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, rows: slice) -> Tensor:
        numbers = self._numbers[rows]
        if self._scales is None:
            return numbers
        scales = self._scales[rows].repeat_interleave(BLOCK, dim=-1)[..., : numbers.shape[-1]]
        return numbers * scales  # float16: the same numbers as Int8States.to_float16


def _groups(weights: Float32Array) -> tuple[Float32Array, list[Tensor]]:
    """The distinct rows [W, H] of head weights [Q, H], and for each of them the indices of its queries."""
    bytes_of_rows = np.ascontiguousarray(weights).view(np.dtype((np.void, weights.itemsize * weights.shape[1])))
    _, first, group = np.unique(bytes_of_rows.reshape(-1), return_index=True, return_inverse=True)
    members = torch.from_numpy(group.argsort(kind="stable")).split(np.bincount(group).tolist())
    return weights[first], list(members)


def _check_readouts(distinct: int, states: int) -> None:
    if distinct * states > MOST_READOUTS:
        raise InvalidInput(
            f"{distinct} distinct head weights for {states} states make {distinct * states} readouts; one request may "
            f"ask for {MOST_READOUTS}: split the queries or the states into several",
            "head_weights",
        )
