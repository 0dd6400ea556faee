"""Images, their embeddings, and scripted servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from tests.client.support import Scripted


@pytest.fixture(scope="module")
def images(make_images: Callable[..., list[Path]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_images(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture(scope="module")
def embeddings(encoder: Encoder, images: list[Path]) -> np.ndarray:
    """[24, E], each from a call of its own."""
    return np.stack([encoder.encode(path).embedding for path in images])


@pytest.fixture
def scripted() -> Iterator[Callable[..., tuple[Scripted, str]]]:
    servers = []

    def start(
        *statuses: tuple[grpc.StatusCode, tuple[tuple[str, str], ...]], service: Scripted | None = None
    ) -> tuple[Scripted, str]:
        service = service or Scripted(*statuses)
        server = grpc.server(futures.ThreadPoolExecutor(4))
        pb_grpc.add_FocusEncoderServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return service, f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()
