"""What a server may send over a stream that nobody asked for: the client neither waits for ever nor takes it all in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from phs_milvus import AsyncEncoder, Encoder, EncoderError, PhsError
from phs_milvus.contract._pb import encoder_pb2 as pb
from tests.hostile.hostile_server import Hostile, asynchronously, encoded, many, png, refused


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
