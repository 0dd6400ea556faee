"""A rerank endpoint on a real port, in front of a real embedding server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from phs_milvus.client.encoder import Encoder
from phs_milvus.web.access import Access
from phs_milvus.web.app import make_app
from phs_milvus.web.rerank import RerankEndpoint
from phs_milvus.web.serving import WebServer
from phs_milvus.web.settings import WebSettings


@pytest.fixture(scope="module")
def rerank_port(encoder: Encoder) -> Iterator[int]:
    settings = WebSettings(port=0)
    with WebServer(make_app(RerankEndpoint(encoder).routes, Access(settings), settings), settings) as server:
        yield server.port
