"""One scan of a file of states, in steps of a tenth of a second, so that others' requests run between them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from phs_milvus.contract.errors import EncoderBusy, InvalidInput
from phs_milvus.contract.scanning import ScanInputs, Scanned, ScanRanking
from phs_milvus.contract.types import Float32Array, ModelInfo
from phs_server.flow.states_file import Rows, StatesFile
from phs_server.model.engine import FocusEngine
from phs_server.model.reranking import DeviceStates

log = logging.getLogger(__name__)

# At a time, and of one caller: their steps take turns, so that each takes the longer the more there are.
_MOST_SCANS, _MOST_OF_A_CALLER = 16, 8
# What a step takes, and how many rows it may have: a Rerank request's readouts at most (MOST_READOUTS).
_SECONDS = 0.1
_FEWEST_ROWS, _MOST_ROWS = 64, 65_536
_MOST_READOUTS = 65_536
# Of a key while rows are looked up by it.
_BYTES_PER_KEY = 64
# Of an answer that are not keys and scores.
_OVERHEAD = 65_536


class Scan:
    """Steps through the rows and keeps the best. Used by one thread at a time.

    Attributes:
        answer_bytes, nbytes: of its answer, at most, and of all that it holds.

    Args:
        file: what to scan.
        inputs: the queries.
        message_bytes: that the answer may have.

    Raises:
        InvalidInput: the answer would not fit into a message.
    """

    def __init__(self, file: StatesFile, inputs: ScanInputs, message_bytes: int) -> None:
        self._file = file
        self._inputs = inputs
        queries = len(inputs.embeddings)
        rankings = queries if inputs.shares is None else len(inputs.shares)
        most = min(inputs.limit, len(file)) * rankings
        self.answer_bytes = most * (file.key_bytes + 8 + 4 * (queries if inputs.shares is not None else 0)) + _OVERHEAD
        if self.answer_bytes > message_bytes:
            raise InvalidInput(
                f"of {inputs.limit} for {rankings} rankings of keys of up to {file.key_bytes} bytes makes an answer of "
                f"up to {self.answer_bytes} bytes; {message_bytes} are allowed",
                "limit",
            )
        self.nbytes = self.answer_bytes
        if inputs.keys is not None:  # as a table; and which rows have them: a byte, and a number
            self.nbytes += _BYTES_PER_KEY * len(inputs.keys) + 9 * len(file)
        distinct = len(np.unique(inputs.head_weights, axis=0))
        self._largest_step = max(_FEWEST_ROWS, min(_MOST_ROWS, _MOST_READOUTS // distinct))
        self._step_rows = min(1024, self._largest_step)
        self._rows: npt.NDArray[np.int64] | None = None
        self._count: int | None = None if inputs.keys is not None else len(file)
        self._next = 0
        self._best = [_Best(inputs.limit, 1 if inputs.shares is None else queries) for _ in range(rankings)]

    @property
    def done(self) -> bool:
        """Whether every row was looked at."""
        return self._count is not None and self._next >= self._count

    def step(self, engine: FocusEngine, held: DeviceStates | None, check: Callable[[], None]) -> None:
        """Finds the rows of the keys, where there are some, or scores the next rows.

        Args:
            held: the file's states on the engine's device; None: they are read from the file.
            check: raises where the scan is to end.

        Raises:
            InvalidInput: keys that are not of the file's type.
            ModelError: a score that is not finite.
        """
        check()
        if self._count is None:
            assert self._inputs.keys is not None
            self._rows = self._file.rows_of(self._inputs.keys)
            self._count = len(self._rows)
            return
        started = time.monotonic()
        stop = min(self._next + self._step_rows, self._count)
        rows: Rows = slice(self._next, stop) if self._rows is None else self._rows[self._next : stop]
        states = self._file.at(rows) if held is None else held.part(rows)
        scores = engine.scan(self._inputs.embeddings, self._inputs.head_weights, states, check)
        numbers = np.arange(self._next, stop) if self._rows is None else self._rows[self._next : stop]
        shares = self._inputs.shares
        for index, (best, ranked) in enumerate(
            zip(self._best, scores if shares is None else shares @ scores, strict=True)
        ):
            best.add(numbers, ranked, scores[index : index + 1] if shares is None else scores)
        self._next = stop
        seconds = max(time.monotonic() - started, 1e-6)
        aim = int(self._step_rows * min(2.0, _SECONDS / seconds))
        self._step_rows = max(_FEWEST_ROWS, min(aim, self._largest_step))

    def result(self) -> Scanned:
        """What was found, when it is done."""
        assert self._count is not None
        header, shares = self._file.header, self._inputs.shares
        rankings = [
            ScanRanking(self._file.keys(best.rows), best.ranked, None if shares is None else best.scores.T)
            for best in self._best
        ]
        return Scanned(rankings, header.collection, header.exported_at, len(self._file), self._count)


class _Best:
    """The best rows so far, the best first; of equal ones the first.

    Attributes:
        rows: int64 [n]; ranked: float32 [n]; scores: float32 [queries, n].
    """

    def __init__(self, limit: int, queries: int) -> None:
        self._limit = limit
        self.rows = np.empty(0, np.int64)
        self.ranked: Float32Array = np.empty(0, np.float32)
        self.scores: Float32Array = np.empty((queries, 0), np.float32)

    def add(self, rows: npt.NDArray[np.int64], ranked: Float32Array, scores: Float32Array) -> None:
        """Adds rows that come after all before."""
        if len(self.rows) == self._limit:
            better = np.flatnonzero(ranked > self.ranked[-1])  # of equal ones the earlier stay
            rows, ranked, scores = rows[better], ranked[better], scores[:, better]
        if not len(rows):
            return
        rows, ranked = np.concatenate([self.rows, rows]), np.concatenate([self.ranked, ranked])
        scores = np.concatenate([self.scores, scores], axis=1)
        order = np.argsort(-ranked, kind="stable")[: self._limit]
        self.rows, self.ranked, self.scores = rows[order], ranked[order], scores[:, order]


class StatesScans:
    """The file that a server scans, and how many scans there are at a time.

    Args:
        file: path of a file of states.
        engines: those with the states in their device's memory, if they fit, read them there.

    Raises:
        StateError, ModelMismatch, PhsError: as `StatesFile`.
    """

    def __init__(self, file: str, info: ModelInfo, engines: Sequence[FocusEngine]) -> None:
        self._file = StatesFile(file, info)
        self._held = {id(engine): engine.hold(self._file.parts) for engine in engines}
        self._message_bytes = info.limits.message_bytes
        self._open: Counter[str] = Counter()
        header, where = self._file.header, "on the device" if any(self._held.values()) else "mapped"
        log.info("%d states of %s, %s, as of %s", len(self._file), header.collection, where, header.exported_at)

    @contextmanager
    def opened(self, inputs: ScanInputs, caller: str = "") -> Iterator[Scan]:
        """A scan, which counts until it is left.

        Args:
            caller: who it is for.

        Raises:
            InvalidInput: the answer would not fit into a message.
            EncoderBusy: there are as many as there may be.
        """
        scan = Scan(self._file, inputs, self._message_bytes)
        if self._open.total() >= _MOST_SCANS or self._open[caller] >= _MOST_OF_A_CALLER:
            raise EncoderBusy(
                f"{self._open.total()} scans are in progress; the limits are {_MOST_SCANS}, and {_MOST_OF_A_CALLER} "
                "for one caller; try again when one has ended"
            )
        self._open[caller] += 1
        try:
            yield scan
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    def step(self, scan: Scan, engine: FocusEngine, check: Callable[[], None]) -> None:
        """`Scan.step` on an engine."""
        scan.step(engine, self._held[id(engine)], check)
