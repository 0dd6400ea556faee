"""A channel and a stub of the shared server."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from tests.server.edge.support import open_channel


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with open_channel(address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> pb_grpc.FocusEncoderStub:
    return pb_grpc.FocusEncoderStub(channel)
