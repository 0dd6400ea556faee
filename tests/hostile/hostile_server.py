"""A real gRPC server that answers with anything at all, and the ways a client asks it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from PIL import Image

from phs_milvus import AsyncEncoder, Box, Encoder, EncoderError, Outputs, PhsError
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb

H, D, E, SIDE = 4, 12, 6, 2
EVERYTHING = Outputs(state=True, head_weights=True, timings=True, attention=True, mask=True, region_feature=True)
PROMPT = Box(8, 8, 40, 30)
Change = Callable[[Message], object]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    return file.getvalue()


def full(shape: list[int], value: float, dtype: type = np.float32) -> pb.Tensor:
    return wire.tensor_to_pb(np.full(shape, value, dtype))


def info() -> pb.ModelInfo:
    names = {"model_id": "hostile", "model_type": "vit", "fingerprint": "f" * 64, "precision": "float32"}
    sizes = {"heads": H, "hidden_size": D, "embedding_size": E, "grid_height": SIDE, "grid_width": SIDE}
    limits = pb.Limits(image_bytes=2**25, image_pixels=10**8, message_bytes=2**26)
    return pb.ModelInfo(**names, **sizes, image_size=32, default_heads=2, limits=limits)


def encoded() -> pb.EncodeResponse:
    return pb.EncodeResponse(
        embedding=full([E], E**-0.5),
        state=full([2, D], 1, np.float16),
        head_scores=full([H], 0.5),
        head_weights=full([H], 1),
        attention=full([H, SIDE, SIDE], 0.1),
        timings=pb.Timings(decode_ms=1, queue_ms=2, compute_ms=3),
        width=64,
        height=48,
        region=pb.Region(x0=0, y0=0, x1=64, y1=48),
        mask=full([SIDE, SIDE], 0.5),
        region_feature=full([D], D**-0.5),
    )


def located() -> pb.LocateResponse:
    box = pb.LocatedBox(region=pb.Region(x0=0, y0=0, x1=32, y1=48), score=0.5)
    location = pb.Location(
        evidence=full([SIDE, SIDE], 1), peak_x=3, peak_y=4, boxes=[box], score=0.5, match=0.5, width=64, height=48
    )
    return pb.LocateResponse(location=location)


GOOD = {
    "GetModelInfo": info,
    "Encode": encoded,
    "Readout": lambda: pb.ReadoutResponse(embeddings=full([3, E], E**-0.5)),
    "Rerank": lambda: pb.RerankResponse(scores=full([2, 3], 0.5)),
}


class Hostile:
    """A real gRPC server that answers each method with a good answer, changed; or with the bytes given."""

    def __init__(self) -> None:
        self.change: dict[str, Change | bytes] = {}
        self.stream: Callable[[Iterator[pb.EncodeStreamRequest]], Iterator[Message]] = self._streamed
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(lambda _, __, name=name: self._answer(name)) for name in GOOD
        }
        handlers["EncodeStream"] = grpc.stream_stream_rpc_method_handler(
            lambda sent, _: (
                self._bytes(answer) for answer in self.stream(map(pb.EncodeStreamRequest.FromString, sent))
            )
        )
        handlers["Locate"] = grpc.stream_stream_rpc_method_handler(
            lambda sent, _: self._located(map(pb.LocateRequest.FromString, sent))
        )
        self.server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1)])
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("phs.v1.FocusEncoder", handlers),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def _answer(self, name: str) -> bytes:
        change = self.change.get(name)
        if isinstance(change, bytes):
            return change
        answer = GOOD[name]()
        if change is not None:
            change(answer)
        return answer.SerializeToString()

    def _streamed(self, sent: Iterator[pb.EncodeStreamRequest]) -> Iterator[Message]:
        for item in sent:
            response = pb.EncodeResponse.FromString(self._answer("Encode"))
            yield pb.EncodeStreamResponse(id=item.id, response=response)

    def _located(self, sent: Iterator[pb.LocateRequest]) -> Iterator[bytes]:
        """An answer to each image, changed; the query comes first."""
        next(sent)
        for item in sent:
            answer = located()
            answer.id = item.id
            change = self.change.get("Locate")
            if callable(change):
                change(answer.location)
            yield answer.SerializeToString()

    @staticmethod
    def _bytes(answer: Message | bytes) -> bytes:
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


def many(encoder: Encoder, **options: object) -> object:
    """One item of a bulk encode, raised where it is an error."""
    (result,) = encoder.encode_many([png()], [PROMPT], **options)
    if isinstance(result, PhsError):
        raise result
    return result


async def asynchronously(address: str, use: Callable[[AsyncEncoder], object]) -> object:
    async with AsyncEncoder(address, timeout=10) as encoder:
        return await use(encoder)


async def many_async(encoder: AsyncEncoder, **options: object) -> object:
    (result,) = [result async for result in encoder.encode_many([png()], [PROMPT], **options)]
    if isinstance(result, PhsError):
        raise result
    return result


def refused(hostile: Hostile, field: str, *uses: Callable[[Encoder], object]) -> None:
    """Every use raises an EncoderError that names server and field, from a client that knows nothing yet."""
    for use in uses:
        with Encoder(hostile.address, timeout=10) as encoder:
            with pytest.raises(EncoderError, match=rf"{re.escape(hostile.address)}: {re.escape(field)}: ") as caught:
                use(encoder)
            assert len(str(caught.value)) < 400


def put(field: str, shape: list[int], value: float = 0.5, dtype: type = np.float32) -> Change:
    return lambda answer: getattr(answer, field).CopyFrom(full(shape, value, dtype))


def clear(field: str) -> Change:
    return lambda answer: answer.ClearField(field)


def assign(**values: object) -> Change:
    return lambda answer: [setattr(answer, field, value) for field, value in values.items()]


def lie(field: str, shape: list[int], data: bytes = b"") -> Change:
    return lambda answer: getattr(answer, field).CopyFrom(pb.Tensor(dtype=1, shape=shape, data=data))
