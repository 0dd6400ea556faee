"""Pictures that the server remembers, on the wire: for whom, for how long, and what is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_server.app import ServerThread
from tests.server.edge.support import box_mask, failure, float32, jpeg, open_channel, settings

TOKENS = "one-token-of-mine-1", "another-token-of-mine-2"


def by_digest(image: bytes, **fields: object) -> pb.EncodeRequest:
    return pb.EncodeRequest(digest=hashlib.sha256(image).digest(), **fields)


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def not_held(call: object) -> bool:
    return failure(call).code() is grpc.StatusCode.NOT_FOUND


def test_a_prompt_by_digest_is_one_by_bytes(stub: pb_grpc.FocusEncoderStub) -> None:
    image = jpeg(seed=11)
    assert not_held(lambda: stub.Encode(by_digest(image), timeout=20))
    first = stub.Encode(pb.EncodeRequest(image=image, mask=box_mask()), timeout=20)
    again = stub.Encode(by_digest(image, mask=box_mask()), timeout=20)
    assert np.abs(float32(first.embedding) - float32(again.embedding)).max() < 2e-3
    assert (again.width, again.height) == (160, 120)
    error = failure(lambda: stub.Encode(by_digest(image, mask=box_mask(10, 10)), timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith("mask: ")
    # A crop that was never encoded is not among what is held.
    assert not_held(lambda: stub.Encode(by_digest(image, mask=box_mask(), focus=pb.Focus(zoom=1)), timeout=20))


def test_a_stream_leaves_nothing_behind(stub: pb_grpc.FocusEncoderStub) -> None:
    image = jpeg(seed=12)
    items = [pb.EncodeStreamRequest(id=1, request=pb.EncodeRequest(image=image))]
    (answer,) = stub.EncodeStream(iter(items), timeout=20)
    assert answer.HasField("response")
    assert not_held(lambda: stub.Encode(by_digest(image), timeout=20))


def test_nobody_can_ask_for_what_another_token_sent(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("\n".join(TOKENS))
    image = jpeg(seed=13)
    own, other = ((("authorization", f"Bearer {token}"),) for token in TOKENS)
    with (
        ServerThread(settings(tiny_model, token_file=str(tmp_path / "tokens"))) as server,
        open_channel(server.address) as channel,
    ):
        stub = pb_grpc.FocusEncoderStub(channel)
        stub.Encode(pb.EncodeRequest(image=image), timeout=20, metadata=own)
        assert stub.Encode(by_digest(image), timeout=20, metadata=own).HasField("embedding")
        assert not_held(lambda: stub.Encode(by_digest(image), timeout=20, metadata=other))


@pytest.mark.parametrize(("limit", "held"), [(0, 0), (2 * 17 * 48, 1), (3 * 2 * 17 * 48, 3)])
def test_as_many_pictures_as_fit(tiny_model: Path, limit: int, held: int) -> None:
    """17 tokens of 48 numbers a picture."""
    images = [jpeg(seed=seed) for seed in range(4)]
    with ServerThread(settings(tiny_model, max_held_bytes=limit)) as server, open_channel(server.address) as channel:
        stub = pb_grpc.FocusEncoderStub(channel)
        for image in images:
            stub.Encode(pb.EncodeRequest(image=image), timeout=20)
        for index, image in enumerate(images):
            if index >= len(images) - held:
                assert stub.Encode(by_digest(image), timeout=20).width == 160
            else:
                assert not_held(lambda image=image: stub.Encode(by_digest(image), timeout=20))


def test_prompts_share_one_answer(stub: pb_grpc.FocusEncoderStub) -> None:
    prompts = [pb.Prompt(mask=box_mask()), pb.Prompt(), pb.Prompt(mask=box_mask(), focus=pb.Focus(zoom=1))]
    answer = stub.Encode(pb.EncodeRequest(image=jpeg(), prompts=prompts), timeout=20)
    assert len(answer.encodings) == 3 and not answer.HasField("embedding") and answer.width == 160
    plain = stub.Encode(pb.EncodeRequest(image=jpeg()), timeout=20)
    assert np.abs(float32(answer.encodings[1].embedding) - float32(plain.embedding)).max() < 2e-3
    assert answer.encodings[2].region.x1 < 160


def test_masks_of_a_huge_picture_are_counted_before_they_are_expanded(stub: pb_grpc.FocusEncoderStub) -> None:
    """64 masks of 100 megapixels would hold a decode thread for half a minute, without any picture to decode."""
    image = png(9000, 9000)
    stub.Encode(pb.EncodeRequest(image=image), timeout=60)
    masks = [
        pb.Mask(width=9000, height=9000, runs=[start, 1, 9000 * 9000 - start - 1]) for start in range(0, 20_000, 5000)
    ]
    request = by_digest(image, prompts=[pb.Prompt(mask=mask) for mask in masks])
    error = failure(lambda: stub.Encode(request, timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("prompts: 4 masks") and "send 3 in one request" in error.details()
    same = by_digest(image, prompts=[pb.Prompt(mask=masks[1])] * 8)
    assert len(stub.Encode(same, timeout=60).encodings) == 8
