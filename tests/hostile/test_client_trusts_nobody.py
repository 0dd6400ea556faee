"""A server that answers with anything at all: the client raises its own error, which names the server and the field."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from phs_milvus import Encoder, EncoderError, Focus
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.types import Limits
from tests.hostile.hostile_server import (
    EVERYTHING,
    PROMPT,
    SIDE,
    Change,
    D,
    E,
    H,
    Hostile,
    assign,
    asynchronously,
    clear,
    lie,
    many,
    many_async,
    png,
    put,
    refused,
)

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
    hostile.change = {"Encode": change}
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


def test_a_model_of_a_million_state_formats(hostile: Hostile) -> None:
    hostile.change = {"GetModelInfo": lambda answer: answer.state_formats.extend([2] * 1_000_000)}
    refused(hostile, "state_formats", lambda encoder: encoder.info)


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


def test_what_was_not_asked_for_is_left_unread(hostile: Hostile) -> None:
    hostile.change = {"Encode": put("state", [7], np.nan)}
    with Encoder(hostile.address, timeout=10) as encoder:
        encoding = encoder.encode(png())
        assert encoding.state is None and encoding.attention is None and encoding.timings is None
        assert encoding.embedding.shape == (E,)
