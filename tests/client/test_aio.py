"""AsyncEncoder gives what Encoder gives, and survives the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import DeadlineExceeded, ImageError, InvalidInput
from phs_milvus.contract.types import Encoding
from phs_milvus.pointing.prompts import Box
from tests.client.support import BUSY, GONE, HEADS, Scripted, lingering, listed
from tests.servers import ServerProcess


def test_async_encoder_gives_what_encoder_gives(address: str, images: list[Path], embeddings: np.ndarray) -> None:
    async def use() -> None:
        async with AsyncEncoder(address) as encoder:
            assert (await encoder.fetch_info()).heads == HEADS
            together = await asyncio.gather(*(encoder.encode(path) for path in images))
            np.testing.assert_allclose([encoding.embedding for encoding in together], embeddings, atol=1e-5)
            explanation = await encoder.explain(images[0], Box(0, 0, 80, 60))
            assert explanation.attention.shape == (HEADS, 4, 4)
            query = await encoder.encode(images[0], outputs=Outputs(state=True, head_weights=True))
            scores = await encoder.rerank(query.embedding[None], query.head_weights[None], query.state[None])
            np.testing.assert_allclose(scores, [[1]], atol=1e-4)
            with pytest.raises(ImageError, match="not found"):
                await encoder.encode("nowhere.jpg")
            with pytest.raises(DeadlineExceeded):
                await encoder.encode(images[0], timeout=0.0005)
            mixed = encoder.encode_many([images[0], b"", images[1]], in_flight=2)
            results = await listed(mixed)
            assert [type(result) for result in results] == [Encoding, ImageError, Encoding]
            np.testing.assert_allclose(results[2].embedding, embeddings[1], atol=1e-5)
            with pytest.raises(InvalidInput, match="as many as there are images"):
                await listed(encoder.encode_many(images[:3], [None]))

    asyncio.run(use())


def test_async_bulk_survives_full_gone_and_twice_and_gives_up(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    async def use() -> None:
        _, address = scripted((BUSY, ()), (GONE, ()), (grpc.StatusCode.CANCELLED, ()))
        async with AsyncEncoder(address) as encoder:
            results = await listed(encoder.encode_many(images[:6], in_flight=4))
            assert [result.width for result in results] == [1, 2, 3, 4, 5, 6]
            with pytest.raises(DeadlineExceeded, match="none of the items in flight"):
                await listed(encoder.encode_many(lingering(images[:1]), timeout=0.5, in_flight=1))

    asyncio.run(use())


def test_async_bulk_survives_kill_9(tiny_model: Path, images: list[Path], embeddings: np.ndarray) -> None:
    async def use(server: ServerProcess) -> None:
        async with AsyncEncoder(server.address, timeout=90) as encoder:
            results = []
            async for result in encoder.encode_many(images * 10, in_flight=16):
                results.append(result)
                if len(results) == 60:
                    server.kill()
                    server.restart()
            found = [result.embedding for result in results]
            np.testing.assert_allclose(found, np.tile(embeddings, (10, 1)), atol=1e-5)

    with ServerProcess(tiny_model, precision="float32") as server:
        asyncio.run(use(server))
