"""What the tests of the client share: a server that follows a script, and images without end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np

from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.types import Encoding

HEADS, HIDDEN = 4, 48
BUSY, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE
NAMES = {"model_id": "scripted", "model_type": "vit", "fingerprint": "5c", "precision": "float32"}
SIZES = {"heads": 2, "hidden_size": 4, "embedding_size": 4, "grid_height": 2, "grid_width": 2, "image_size": 32}
LIMITS = pb.Limits(image_bytes=2**25, image_pixels=10**8, message_bytes=2**26)
UNIT = np.full(4, 0.5, np.float32)


class Scripted(pb_grpc.FocusEncoderServicer):
    """A gRPC server that follows a script: what a real one cannot be made to do on demand."""

    def __init__(self, *statuses: tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]) -> None:
        self.statuses = list(statuses)
        self.arrivals: list[float] = []

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        self.arrivals.append(time.monotonic())
        if self.statuses:
            code, trailing = self.statuses.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, "scripted")
        return pb.ModelInfo(**NAMES, **SIZES, default_heads=1, limits=LIMITS)

    def EncodeStream(
        self, requests: Iterator[pb.EncodeStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.EncodeStreamResponse]:
        """Answers in pairs, the wrong way round, and each item twice."""
        if self.statuses:
            next(iter(requests))
            context.abort(self.statuses.pop(0)[0], "scripted")
        pair = []
        for item in requests:
            response = pb.EncodeResponse(embedding=wire.tensor_to_pb(UNIT), width=int(item.id) + 1, height=1)
            answer = pb.EncodeStreamResponse(id=item.id, response=response)
            pair.append(answer)
            if len(pair) == 2:
                yield from (*reversed(pair), *pair)
                pair.clear()
        yield from pair


def lingering(images: list[Path]) -> Iterator[Path]:
    yield from images
    while True:
        yield images[0]


async def listed(results: AsyncIterator[Encoding | PhsError]) -> list[Encoding | PhsError]:
    return [result async for result in results]
