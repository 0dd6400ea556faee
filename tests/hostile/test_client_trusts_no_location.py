"""A server that answers Locate and Readout with anything at all."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from phs_milvus import AsyncEncoder, Encoder, EncoderError
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.location import LocateTarget
from tests.hostile.hostile_server import SIDE, Change, D, E, H, Hostile, assign, asynchronously, clear, lie, png, put

TARGET = LocateTarget(np.full(E, E**-0.5, np.float32), np.ones(H, np.float32), limit=2)


def box(score: float = 0.5, **region: int) -> pb.LocatedBox:
    return pb.LocatedBox(region=pb.Region(**{"x0": 0, "y0": 0, "x1": 32, "y1": 48} | region), score=score)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("evidence", clear("evidence")),
        ("evidence", put("evidence", [SIDE, SIDE + 1])),
        ("evidence", put("evidence", [SIDE * SIDE])),
        ("evidence", put("evidence", [SIDE, SIDE], np.nan)),
        ("evidence", lie("evidence", [2**31, 2**31])),
        ("peak_x", assign(peak_x=65.0)),
        ("peak_y", assign(peak_y=float("nan"))),
        ("boxes", clear("boxes")),
        ("boxes", lambda found: found.boxes.extend([box()] * 2)),
        ("boxes", lambda found: found.boxes.extend([box(score=7.0)])),
        ("region", lambda found: found.boxes.extend([box(x1=65)])),
        ("region", lambda found: found.boxes.extend([box(y0=48)])),
        ("score", assign(score=float("inf"))),
        ("match", assign(match=-3.0)),
        ("width", assign(width=0)),
    ],
)
def test_a_wrong_location_is_refused(hostile: Hostile, field: str, change: Change) -> None:
    hostile.change = {"Locate": change}
    with Encoder(hostile.address, timeout=10) as encoder:
        (result,) = encoder.locate(TARGET, [png()])
    assert isinstance(result, EncoderError) and f"{hostile.address}: {field}: " in str(result)

    async def use(encoder: AsyncEncoder) -> list[object]:
        return [result async for result in encoder.locate(TARGET, [png()])]

    (result,) = asyncio.run(asynchronously(hostile.address, use))
    assert isinstance(result, EncoderError) and f": {field}: " in str(result)


def test_a_right_location_is_taken(hostile: Hostile) -> None:
    with Encoder(hostile.address, timeout=10) as encoder:
        (found,) = encoder.locate(TARGET, [png()])
    assert found.peak == (3, 4) and found.boxes[0].region == (0, 0, 32, 48)


@pytest.mark.parametrize(
    "change",
    [
        clear("embeddings"),
        *[put("embeddings", shape) for shape in ([2, E], [3, E + 1], [3 * E])],
        put("embeddings", [3, E], np.nan),
        put("embeddings", [3, E], 2),
        put("embeddings", [3, E], E**-0.5, np.float16),
    ],
)
def test_wrong_embeddings_are_refused(hostile: Hostile, change: Change) -> None:
    hostile.change = {"Readout": change}
    states = np.zeros((3, 2, D), np.float16)
    with (
        Encoder(hostile.address, timeout=10) as encoder,
        pytest.raises(EncoderError, match=f"{hostile.address}: embeddings: "),
    ):
        encoder.readout(states, np.ones(H, np.float32))
