"""What the tests of the server's edge send, and how they look at an answer."""

from __future__ import annotations

import io
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
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


def open_channel(address: str, *options: tuple[str, int]) -> grpc.Channel:
    """Without retries, so that a test sees what the server says."""
    own = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(address, [*own, *options])


def refused_beside(stub: pb_grpc.FocusEncoderStub, request: pb.EncodeRequest) -> tuple[grpc.Future, grpc.RpcError]:
    """`request`, still being worked on, and how a small call was refused meanwhile.

    Whether the small call comes while the other is worked on is chance on a busy machine, so it is tried again.
    """
    for _ in range(20):
        working = stub.Encode.future(request, timeout=60)
        while not working.done():
            try:
                stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=60)
            except grpc.RpcError as error:
                if not working.done():
                    return working, error
    raise AssertionError("a small call was never refused; make the request slower")


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


def metrics(port: int) -> dict[str, float]:
    """What a server counts, by name and labels, as Prometheus would read it."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def silence(gate: threading.Event) -> Iterator[bytes]:
    gate.wait(30)
    yield from ()
