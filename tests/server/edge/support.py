"""What the tests of the server's edge send, and how they look at an answer."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import MaskRuns
from phs_server.config import Settings

HEADS, HIDDEN, GRID, SIDE = 4, 48, 4, 56
ALL = [pb.OUTPUT_EMBEDDING, pb.OUTPUT_STATE, pb.OUTPUT_HEADS, pb.OUTPUT_TIMINGS]


def jpeg(seed: int = 0, size: tuple[int, int] = (160, 120)) -> bytes:
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def slow_png() -> bytes:
    """Valid, small in bytes, and half a second of work to decode."""
    buffer = io.BytesIO()
    Image.new("RGB", (9000, 9000), "red").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def box_mask(width: int = 160, height: int = 120) -> pb.Mask:
    inside = np.zeros((height, width), np.bool_)
    inside[: height // 2, : width // 2] = True
    return pb.Mask(width=width, height=height, runs=MaskRuns.from_array(inside).runs.tolist())


def float32(tensor: pb.Tensor) -> np.ndarray:
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


def settings(model: Path, **changes: object) -> Settings:
    return Settings(**{"model": str(model), "port": 0, "precision": "float32", "drain_seconds": 2, **changes})


def open_channel(address: str) -> grpc.Channel:
    """Without retries, so that a test sees what the server says."""
    return grpc.insecure_channel(
        address,
        [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)],
    )


def failure(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def items(images: list[bytes], **changes: object) -> Iterator[pb.EncodeStreamRequest]:
    for index, image in enumerate(images):
        yield pb.EncodeStreamRequest(id=index, request=pb.EncodeRequest(image=image, **changes))


def held_open(gate: threading.Event) -> Iterator[pb.EncodeStreamRequest]:
    yield from items([jpeg()])
    gate.wait(30)


def eventually(check: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except grpc.RpcError:
            pass
        assert time.monotonic() < until
        time.sleep(0.05)


def silence(gate: threading.Event) -> Iterator[bytes]:
    gate.wait(30)
    yield from ()
