"""encode_many: order, bad images, limits, restarts of the server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import DeadlineExceeded, EncoderError, ImageError, InvalidInput, PhsError
from phs_milvus.contract.types import Encoding, Limits
from phs_server.app import ServerThread
from phs_server.config import Settings
from tests.client.support import BUSY, GONE, Scripted, lingering, listed
from tests.servers import ServerProcess


def test_bulk_keeps_order_around_bad_images(encoder: Encoder, images: list[Path], embeddings: np.ndarray) -> None:
    data = images[1].read_bytes()
    mixed = [images[0], "nowhere.jpg", images[1], data[:900], b"", images[2]]
    with pytest.raises(InvalidInput, match="at least 1"):
        next(encoder.encode_many(mixed, in_flight=0))
    results = list(encoder.encode_many(mixed, in_flight=2))
    kinds = [type(result) for result in results]
    assert kinds == [Encoding, ImageError, Encoding, ImageError, ImageError, Encoding]
    good = [result.embedding for result in results if isinstance(result, Encoding)]
    np.testing.assert_allclose(good, embeddings[:3], atol=1e-5)


@pytest.mark.parametrize("flags", [{"max_message_bytes": 65536}, {"max_image_bytes": 50_000}])
def test_bulk_survives_an_item_over_a_lower_limit_of_the_server(
    tiny_model: Path, images: list[Path], flags: dict[str, int]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)  # over 100 kB, however packed

    async def asynchronously(address: str) -> list[Encoding | PhsError]:
        async with AsyncEncoder(address) as encoder:
            await encoder.fetch_info()
            return await listed(encoder.encode_many([images[0], noise, images[1]]))

    settings = Settings(model=str(tiny_model), port=0, precision="float32", drain_seconds=2, **flags)
    with ServerThread(settings) as server, Encoder(server.address) as encoder:
        assert encoder.info.limits != Limits()
        for results in (
            list(encoder.encode_many([images[0], noise, images[1]])),
            asyncio.run(asynchronously(server.address)),
        ):
            assert [type(result) for result in results] == [Encoding, ImageError, Encoding]


def test_bulk_reads_only_so_far_ahead(encoder: Encoder, images: list[Path]) -> None:
    taken = 0

    def source() -> Iterator[Path]:
        nonlocal taken
        for path in images * 20:
            taken += 1
            yield path

    results = encoder.encode_many(source(), in_flight=8)
    for _ in range(5):
        next(results)
    assert taken <= 13
    results.close()


def test_bulk_of_nothing_and_of_unmatched_prompts(encoder: Encoder, images: list[Path]) -> None:
    assert list(encoder.encode_many([])) == []
    with pytest.raises(InvalidInput, match="as many as there are images"):
        list(encoder.encode_many(images[:3], [None, None]))
    with pytest.raises(InvalidInput, match="as many as there are images"):
        list(encoder.encode_many(images[:2], [None, None, None]))


def test_bulk_hands_out_the_callers_keys(
    address: str, encoder: Encoder, images: list[Path], embeddings: np.ndarray
) -> None:
    async def asynchronously() -> list[tuple[str, Encoding | PhsError]]:
        async with AsyncEncoder(address) as other:
            return await listed(other.encode_many([images[0], b"", images[1]], keys=iter("abc")))

    for results in (
        list(encoder.encode_many([images[0], b"", images[1]], keys=iter("abc"))),
        asyncio.run(asynchronously()),
    ):
        assert [(key, type(result)) for key, result in results] == [
            ("a", Encoding),
            ("b", ImageError),
            ("c", Encoding),
        ]
        np.testing.assert_allclose(results[2][1].embedding, embeddings[1], atol=1e-5)
    for keys in ([], [1], [1, 2, 3]):
        with pytest.raises(InvalidInput, match="as many as there are images") as caught:
            list(encoder.encode_many(images[:2], keys=keys))
        assert caught.value.field == "keys"


def test_bulk_survives_answers_out_of_order_and_twice(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    _, address = scripted()
    with Encoder(address) as encoder:
        widths = [result.width for result in encoder.encode_many(images[:20], in_flight=4)]
    assert widths == list(range(1, 21))


def test_bulk_resends_when_the_server_is_full_or_gone_but_not_for_other_reasons(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    _, address = scripted((BUSY, ()), (GONE, ()), (grpc.StatusCode.CANCELLED, ()))
    with Encoder(address) as encoder:
        assert [result.width for result in encoder.encode_many(images[:6])] == [1, 2, 3, 4, 5, 6]
    _, address = scripted((grpc.StatusCode.UNAUTHENTICATED, ()))
    with Encoder(address) as encoder, pytest.raises(EncoderError, match="scripted"):
        list(encoder.encode_many(images[:6]))


def test_bulk_gives_up_when_nothing_is_answered_and_not_while_the_caller_is_slow(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    """The scripted server answers in pairs: a lone item waits for a second one."""
    _, address = scripted()
    with Encoder(address) as encoder:
        with pytest.raises(DeadlineExceeded, match="none of the items in flight for 0.5 s"):
            list(encoder.encode_many(lingering(images[:1]), timeout=0.5, in_flight=1))
        slow = []
        for result in encoder.encode_many(images[:6], timeout=2, in_flight=2):
            if not slow:
                time.sleep(3)  # longer than the timeout, which bounds the server and not the caller
            slow.append(result.width)
        assert slow == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_bulk_survives_a_restart_in_the_middle(
    tiny_model: Path, images: list[Path], embeddings: np.ndarray, how: str
) -> None:
    """kill -9 or SIGTERM after 100 of 600 items, the server back on the same port: each item once, in order, right."""
    with ServerProcess(tiny_model, precision="float32") as server, Encoder(server.address, timeout=90) as encoder:

        def strike() -> None:
            getattr(server, how)()
            server.restart()

        striker = threading.Thread(target=strike)
        results = []
        for result in encoder.encode_many(images * 25, in_flight=32):
            results.append(result)
            if len(results) == 100:
                striker.start()
        striker.join()
        assert len(results) == 600 and all(isinstance(result, Encoding) for result in results)
        np.testing.assert_allclose([result.embedding for result in results], np.tile(embeddings, (25, 1)), atol=1e-5)
        server.wait_until_ready()
