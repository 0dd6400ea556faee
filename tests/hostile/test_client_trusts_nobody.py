"""A server that answers with anything at all: the client raises its own error, which names the server and the field."""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from PIL import Image

from phs_milvus import AsyncEncoder, Box, Encoder, EncoderError, Focus, Outputs, PhsError
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import Limits

H, D, E, SIDE = 4, 12, 6, 2
EVERYTHING = Outputs(state=True, head_weights=True, timings=True, attention=True)
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
    )


def explained() -> pb.ExplainResponse:
    return pb.ExplainResponse(
        attention=full([H, SIDE, SIDE], 0.1),
        mask=full([SIDE, SIDE], 0.5),
        head_scores=full([H], 0.5),
        head_weights=full([H], 1),
        width=64,
        height=48,
        region=pb.Region(x0=0, y0=0, x1=64, y1=48),
    )


GOOD = {
    "GetModelInfo": info,
    "Encode": encoded,
    "Explain": explained,
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

    @staticmethod
    def _bytes(answer: Message | bytes) -> bytes:
        return answer if isinstance(answer, bytes) else answer.SerializeToString()


@pytest.fixture(scope="module")
def running() -> Iterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.server.stop(None).wait()


@pytest.fixture
def hostile(running: Hostile) -> Hostile:
    running.change, running.stream = {}, running._streamed
    return running


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


UNIT = E**-0.5
ENCODE = [
    ("embedding", clear("embedding")),
    ("embedding", put("embedding", [E + 1], (E + 1) ** -0.5)),
    ("embedding", put("embedding", [1, E], UNIT)),
    ("embedding", put("embedding", [], 1)),
    ("embedding", put("embedding", [E], UNIT, np.float16)),
    ("embedding", put("embedding", [E], np.nan)),
    ("embedding", put("embedding", [E], np.inf)),
    ("embedding", put("embedding", [E], 0)),
    ("embedding", put("embedding", [E], 3)),
    ("embedding", lie("embedding", [E])),
    ("embedding", lie("embedding", [2**32 - 1] * 40)),
    ("embedding", lie("embedding", [0] * 100_000)),
    ("state", clear("state")),
    ("state", put("state", [2, D - 1], 1, np.float16)),
    ("state", put("state", [2 * D], 1, np.float16)),
    ("state", put("state", [D, 2], 1, np.float16)),
    ("state", put("state", [2, D], 1, np.float32)),
    ("state", put("state", [2, D], np.nan, np.float16)),
    ("head_scores", clear("head_scores")),
    ("head_scores", put("head_scores", [H + 1])),
    ("head_scores", put("head_scores", [H], -0.5)),
    ("head_scores", put("head_scores", [H], 2)),
    ("head_weights", clear("head_weights")),
    ("head_weights", put("head_weights", [H - 1])),
    ("head_weights", put("head_weights", [H], np.nan)),
    ("head_weights", put("head_weights", [H], 1e30)),
    ("head_weights", put("head_weights", [H], -1)),
    ("attention", clear("attention")),
    ("attention", put("attention", [H, SIDE * SIDE])),
    ("attention", put("attention", [H, SIDE + 1, SIDE])),
    ("attention", put("attention", [H, SIDE, SIDE], 7)),
    ("timings", clear("timings")),
    ("timings", lambda answer: answer.timings.MergeFrom(pb.Timings(queue_ms=float("nan")))),
    ("timings", lambda answer: answer.timings.MergeFrom(pb.Timings(decode_ms=-5))),
    ("width", assign(width=0)),
    ("width", assign(width=65)),
    ("height", assign(height=2**32 - 1)),
]


@pytest.mark.parametrize(("field", "change"), ENCODE)
def test_a_wrong_encoding_is_refused_by_every_call(hostile: Hostile, field: str, change: Change) -> None:
    hostile.change = {"Encode": change}
    options = {"outputs": EVERYTHING}
    refused(
        hostile,
        field,
        lambda encoder: encoder.encode(png(), PROMPT, **options),
        lambda encoder: many(encoder, **options),
    )
    for use in (
        lambda encoder: encoder.encode(png(), PROMPT, **options),
        lambda encoder: many_async(encoder, **options),
    ):
        with pytest.raises(EncoderError, match=f": {field}: "):
            asyncio.run(asynchronously(hostile.address, use))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("attention", put("attention", [H, SIDE, SIDE + 1])),
        ("attention", put("attention", [H, 0, 0])),
        ("mask", clear("mask")),
        ("mask", put("mask", [SIDE * SIDE])),
        ("mask", put("mask", [SIDE, SIDE], 9)),
        ("head_scores", clear("head_scores")),
        ("head_weights", put("head_weights", [H, 1])),
        ("region", clear("region")),
        ("region", lambda answer: answer.region.MergeFrom(pb.Region(x1=65))),
        ("region", lambda answer: answer.region.MergeFrom(pb.Region(y0=48))),
        ("height", assign(height=47)),
    ],
)
def test_a_wrong_explanation_is_refused(hostile: Hostile, field: str, change: Change) -> None:
    hostile.change = {"Explain": change}
    refused(hostile, field, lambda encoder: encoder.explain(png(), PROMPT, focus=Focus(zoom=2)))
    with pytest.raises(EncoderError, match=f": {field}: "):
        asyncio.run(asynchronously(hostile.address, lambda encoder: encoder.explain(png(), PROMPT)))


@pytest.mark.parametrize(
    "change",
    [
        clear("scores"),
        *[put("scores", shape) for shape in ([1, 1], [3, 2], [2, 1], [1, 3], [2, 4], [6], [2, 3, 1], [], [0, 3])],
        put("scores", [2, 3], np.nan),
        put("scores", [2, 3], 40),
        put("scores", [2, 3], 0.5, np.float16),
        lie("scores", [2, 3], b"\0" * 23),
    ],
)
def test_wrong_scores_are_refused(hostile: Hostile, change: Change) -> None:
    hostile.change = {"Rerank": change}
    inputs = (np.full((2, E), UNIT, np.float32), np.ones((2, H), np.float32), np.zeros((3, 2, D), np.float16))
    refused(hostile, "scores", lambda encoder: encoder.rerank(*inputs))
    with pytest.raises(EncoderError, match=": scores: "):
        asyncio.run(asynchronously(hostile.address, lambda encoder: encoder.rerank(*inputs)))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("heads", {"heads": 0}),
        ("heads", {"heads": 2**32 - 1}),
        ("heads", {"heads": 5}),
        ("hidden_size", {"hidden_size": 0}),
        ("embedding_size", {"embedding_size": 2**31}),
        ("grid_height", {"grid_height": 0}),
        ("grid_width", {"grid_width": 33}),
        ("image_size", {"image_size": 0}),
        ("default_heads", {"default_heads": 5}),
        ("default_heads", {"default_heads": 0}),
        ("fingerprint", {"fingerprint": ""}),
        ("fingerprint", {"fingerprint": "f" * 10_000}),
        ("model_id", {"model_id": "m" * 2**20}),
        ("model_type", {"model_type": "\x1b[2J"}),
        ("precision", {"precision": "float999"}),
    ],
)
def test_no_such_model(hostile: Hostile, field: str, values: dict[str, object]) -> None:
    hostile.change = {"GetModelInfo": assign(**values)}
    uses = (lambda encoder: encoder.info, lambda encoder: encoder.encode(png()), many)
    refused(hostile, field, *uses)
    with pytest.raises(EncoderError, match=f": {field}: "):
        asyncio.run(asynchronously(hostile.address, lambda encoder: encoder.fetch_info()))


@pytest.mark.parametrize("field", ["image_bytes", "image_pixels", "message_bytes"])
def test_no_such_limits(hostile: Hostile, field: str) -> None:
    hostile.change = {"GetModelInfo": lambda answer: setattr(answer.limits, field, 0)}
    refused(hostile, f"limits.{field}", lambda encoder: encoder.info)


@pytest.mark.parametrize("garbage", [b"\xff" * 20, b"\x0a\x05ab", bytes(Limits.message_bytes + 1)])
@pytest.mark.parametrize("name", ["GetModelInfo", "Encode"])
def test_bytes_that_are_no_message_or_too_many(hostile: Hostile, name: str, garbage: bytes) -> None:
    hostile.change = {name: garbage}
    hostile.stream = lambda sent: (garbage for _ in sent)
    for use in (lambda encoder: encoder.encode(png()), lambda encoder: many(encoder)):
        with (
            Encoder(hostile.address, timeout=10) as encoder,
            pytest.raises(EncoderError, match=f"wrong answer .* {hostile.address}"),
        ):
            use(encoder)
    for use in (lambda encoder: encoder.encode(png()), lambda encoder: many_async(encoder)):
        with pytest.raises(EncoderError, match=f"wrong answer .* {hostile.address}"):
            asyncio.run(asynchronously(hostile.address, use))


# --- streams ----------------------------------------------------------------------------------------------------------


def forever(item: int) -> Iterator[pb.EncodeStreamResponse]:
    while True:
        yield pb.EncodeStreamResponse(id=item, response=encoded())


@pytest.mark.parametrize("item", [0, 1, 77, 2**64 - 1])
def test_answers_to_items_never_sent_or_answered_before_end_the_bulk(hostile: Hostile, item: int) -> None:
    """Item 0 is answered again for ever, while a second one waits for its first answer."""
    hostile.stream = lambda sent: forever(item)
    with Encoder(hostile.address, timeout=10) as encoder, pytest.raises(EncoderError, match=r": id: is \d+"):
        list(encoder.encode_many([png()] * (2 if item == 0 else 1), in_flight=2))

    async def use(encoder: AsyncEncoder) -> None:
        async for _ in encoder.encode_many([png()] * (2 if item == 0 else 1), in_flight=2):
            pass

    with pytest.raises(EncoderError, match=r": id: is \d+"):
        asyncio.run(asynchronously(hostile.address, use))


def test_a_flood_of_answers_is_not_taken_off_the_wire(hostile: Hostile) -> None:
    made = 0

    def flood(sent: Iterator[pb.EncodeStreamRequest]) -> Iterator[bytes]:
        nonlocal made
        answer = pb.EncodeStreamResponse(id=next(sent).id, response=encoded())
        answer.response.attention.data = bytes(2**20)
        for made in range(1, 2000):  # noqa: B007
            yield answer.SerializeToString()

    hostile.stream = flood
    with Encoder(hostile.address, timeout=10) as encoder:
        results = encoder.encode_many([png()] * 9, in_flight=2)
        next(results)
        before = -1
        while made != before:  # until the server is held back
            before = made
            time.sleep(0.3)
        results.close()
    assert made < 100


def test_an_item_error_is_shown_in_one_line_and_never_at_length(hostile: Hostile) -> None:
    text = "image: \x1b[2Jcannot\nbe read " + "A" * 2**20
    errors = iter([pb.ItemError(code=3, message=text), pb.ItemError(code=-9, message=text)])
    hostile.stream = lambda sent: (pb.EncodeStreamResponse(id=item.id, error=next(errors)) for item in sent)
    with Encoder(hostile.address, timeout=10) as encoder:
        for result in encoder.encode_many([png()] * 2):
            assert isinstance(result, PhsError) and len(str(result)) < 1100 and str(result).isprintable()


def test_an_answer_that_is_neither_a_response_nor_an_error(hostile: Hostile) -> None:
    hostile.stream = lambda sent: (pb.EncodeStreamResponse(id=item.id) for item in sent)
    refused(hostile, "result", many)


def test_what_was_not_asked_for_is_left_unread(hostile: Hostile) -> None:
    hostile.change = {"Encode": put("state", [7], np.nan)}
    with Encoder(hostile.address, timeout=10) as encoder:
        encoding = encoder.encode(png())
        assert encoding.state is None and encoding.attention is None and encoding.timings is None
        assert encoding.embedding.shape == (E,)
