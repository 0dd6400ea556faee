"""The walk over a message's bytes: what it refuses, and that it changes nothing for what it lets through."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_server.edge.messages import parse


def encode_request(**changes: object) -> pb.EncodeRequest:
    mask = pb.Mask(width=1000, height=1000, runs=[1, 2, 3] * 1000)
    fields = {"image": b"x" * 10_000, "mask": mask, "outputs": [1, 2, 3], "expected_fingerprint": "a" * 64}
    return pb.EncodeRequest(**{**fields, **changes})


def test_what_is_sent_is_what_is_read() -> None:
    tensor = pb.Tensor(dtype=pb.DTYPE_FLOAT32, shape=[3, 2**32 - 1], data=b"y" * 1000)
    for message in (
        encode_request(),
        pb.EncodeStreamRequest(id=2**64 - 1, request=encode_request()),
        pb.RerankRequest(embeddings=tensor, head_weights=tensor, states=tensor),
        pb.GetModelInfoRequest(),
    ):
        assert parse(type(message), message.SerializeToString()) == message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (encode_request(outputs=[1] * 321), "outputs"),
        (encode_request(expected_fingerprint="a" * 5000), "expected_fingerprint"),
        (encode_request(mask=pb.Mask(runs=[2**32 - 1] * (2**22 + 1))), "mask"),
        (pb.RerankRequest(states=pb.Tensor(shape=[1] * 321)), "states"),
        (pb.EncodeStreamRequest(request=encode_request(outputs=[1] * 321)), "outputs"),
    ],
)
def test_a_list_that_is_too_long_is_named(message: pb.EncodeRequest, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(type(message), message.SerializeToString())
    assert caught.value.field == field


def test_fields_written_one_by_one_or_again_and_again_are_counted_together() -> None:
    mask = pb.Mask(runs=[1] * 2**22).SerializeToString()
    again = b"\x12" + bytes([0x80 | len(mask) & 0x7F, 0x80 | len(mask) >> 7 & 0x7F, 0x80 | len(mask) >> 14 & 0x7F])
    again += bytes([len(mask) >> 21]) + mask
    with pytest.raises(InvalidInput) as caught:
        parse(pb.EncodeRequest, again * 6)
    assert caught.value.field == "mask"
    for one in (b"\x20\x01", b"\x78\x01", b"\x0a\x00"):  # outputs, an unknown field, image
        with pytest.raises(InvalidInput):
            parse(pb.EncodeRequest, one * 4000)


@given(st.binary(max_size=300))
def test_noise_is_refused_or_read_as_protobuf_reads_it(data: bytes) -> None:
    try:
        expected = pb.EncodeStreamRequest.FromString(data)
    except DecodeError:
        with pytest.raises((DecodeError, InvalidInput)):
            parse(pb.EncodeStreamRequest, data)
        return
    try:
        assert parse(pb.EncodeStreamRequest, data) == expected
    except InvalidInput as error:
        assert "bytes; this server takes" in str(error) or "fields in one message" in str(error)
