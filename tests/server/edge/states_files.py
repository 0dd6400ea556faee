"""Files of states for tests, written by pyarrow itself, so that they can also be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

from phs_milvus.contract.int8_states import Int8States
from phs_milvus.contract.states_file import StatesHeader
from tests.server.edge.support import HIDDEN

AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)


def states(count: int, seed: int = 0, hidden: int = HIDDEN) -> Int8States:
    return Int8States.of(np.random.default_rng(seed).standard_normal((count, 2, hidden)).astype(np.float16))


def write_states(
    path: Path,
    fingerprint: str,
    keys: Sequence[str | int],
    of: Int8States,
    *,
    batch: int = 100,
) -> Path:
    """A file of states."""
    header = StatesHeader("photos", AT, fingerprint, "tiny", of.hidden_size)
    schema = header.schema(text_keys=not keys or isinstance(keys[0], str))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(keys), batch):
            some = of[start : start + batch]
            tensors = [
                pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(part))
                for part in (some.scales, some.values)
            ]
            writer.write_batch(pa.record_batch([pa.array(keys[start : start + batch]), *tensors], schema=schema))
    return path
