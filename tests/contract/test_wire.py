"""Messages to values and back, and hostile messages."""

from __future__ import annotations

import numpy as np
import pytest

from phs_milvus.client import answers
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput, PromptError
from phs_milvus.contract.types import Encoding, Focus, Limits, MaskRuns, ModelInfo, Pointing, Timings


def test_tensor_is_little_endian_row_major() -> None:
    message = wire.tensor_to_pb(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32).T)
    assert list(message.shape) == [2, 2]
    assert message.data == bytes.fromhex("0000803f 00004040 00000040 00008040")
    assert wire.tensor_to_pb(np.array([1.0], np.float16)).data == bytes.fromhex("003c")


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (pb.Tensor(), "expected float32, got dtype DTYPE_UNSPECIFIED"),
        (pb.Tensor(dtype=99, shape=[1, 2], data=b"\0" * 8), "got dtype 99"),
        (pb.Tensor(dtype=2, shape=[1, 2], data=b"\0" * 4), "expected float32, got dtype DTYPE_FLOAT16"),
        (pb.Tensor(dtype=1, shape=[2], data=b"\0" * 8), r"expected shape \[any, 2\], got \[2\]"),
        (pb.Tensor(dtype=1, shape=[1, 3], data=b"\0" * 12), r"expected shape \[any, 2\], got \[1, 3\]"),
        (pb.Tensor(dtype=1, shape=[4_000_000_000, 2], data=b"\0" * 8), "needs 32000000000 bytes, got 8"),
        (pb.Tensor(dtype=1, shape=[1, 2], data=b"\0" * 7), "needs 8 bytes, got 7"),
        (pb.Tensor(dtype=1, shape=[1, 2], data=np.array([1, np.nan], "<f4").tobytes()), "NaN"),
    ],
)
def test_hostile_tensors_are_named(message: pb.Tensor, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as error:
        wire.tensor_from_pb(message, "states", np.float32, [None, 2])
    assert error.value.field == "states"


def test_mask_round_trip_and_wrong_sums() -> None:
    for mask in (
        np.eye(5, 7, dtype=bool),
        ~np.eye(5, 7, dtype=bool),
        np.ones((2, 3), bool),
        np.zeros((2, 3), bool),
    ):
        runs = MaskRuns.from_array(mask)
        request = wire.encode_request(b"x", [Pointing(runs, Focus())])
        ((back, _),) = wire.pointings_of(pb.EncodeRequest.FromString(request.SerializeToString()), 4)
        assert back is not None
        assert np.array_equal(back.to_array(), mask)
    with pytest.raises(PromptError, match="sum to 5"):
        MaskRuns(2, 3, np.array([5], np.uint32)).to_array()


def test_images_are_counted_as_the_model_sees_them() -> None:
    def count(*zooms: float) -> int:
        return wire.count_images(wire.encode_request(b"x", [Pointing(None, Focus(zoom=zoom)) for zoom in zooms]))

    assert [count(0), count(2), count(0, 0), count(0, 2), count(2, 0), count(2, 2), count(2, 0, 3, 0)] == [
        1, 1, 1, 2, 2, 2, 3,
    ]  # fmt: skip


def test_absent_and_present_masks_differ() -> None:
    assert wire.pointings_of(wire.encode_request(b"x", [Pointing(None, Focus())]), 4)[0].mask is None
    assert wire.pointings_of(pb.EncodeRequest(mask=pb.Mask()), 4)[0].mask is not None


def test_focus_is_checked_against_the_model() -> None:
    assert wire.pointings_of(pb.EncodeRequest(), 12)[0].focus == Focus.paper()
    assert wire.pointings_of(pb.EncodeRequest(focus=pb.Focus(heads_on=12)), 12)[0].focus == Focus.paper(12)
    with pytest.raises(InvalidInput, match="heads_on is 13, but the model has 12"):
        wire.pointings_of(pb.EncodeRequest(focus=pb.Focus(heads_on=13)), 12)
    with pytest.raises(InvalidInput, match="whole number from 1, 'all' or None, got 0"):
        Focus(heads_on=0)


def test_a_response_holds_what_was_asked_for() -> None:
    encoding = Encoding(
        embedding=np.full(4, 0.5, np.float32),
        state=np.ones((2, 8), np.float16),
        head_scores=np.zeros(2, np.float32),
        head_weights=np.ones(2, np.float32),
        timings=Timings(1, 2, 3),
        width=5,
        height=6,
        attention=np.zeros((2, 3, 3), np.float32),
    )
    plain = wire.encodings_to_pb([encoding], pb.EncodeRequest())
    assert [field.name for field, _ in plain.ListFields()] == ["embedding", "width", "height"]
    every = [pb.OUTPUT_STATE, pb.OUTPUT_HEADS, pb.OUTPUT_TIMINGS, pb.OUTPUT_ATTENTION]
    request = pb.EncodeRequest(outputs=every, mask=pb.Mask(width=5, height=6))
    full = wire.encodings_to_pb([encoding], request)
    assert not full.HasField("embedding")
    info = ModelInfo("m", "vit", "f", 2, 8, 4, 3, 3, 24, 1, "float32", Limits())
    (back,) = answers.encodings(pb.EncodeResponse.FromString(full.SerializeToString()), request, info, "here")
    for field in ("state", "head_scores", "head_weights", "attention"):
        found, sent = getattr(back, field), getattr(encoding, field)
        assert found.dtype == sent.dtype and np.array_equal(found, sent), field
    assert (back.embedding, back.timings, back.width, back.height) == (None, Timings(1, 2, 3), 5, 6)


def test_model_info_round_trip() -> None:
    info = ModelInfo("m", "vit", "f" * 64, 3, 192, 128, 14, 15, 224, 1, "float32", Limits(1, 2, 3), ("float16", "int8"))
    assert wire.info_from_pb(wire.info_to_pb(info)) == info
