"""The page over a real port, with a real embedding server, Milvus Lite and files; and a browser, where there is one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phs_milvus import Encoder, FocusedCollection, connect, ingest_folder
from phs_milvus.milvus.connection import close
from phs_milvus.web.access import Access
from phs_milvus.web.api.service import Service
from phs_milvus.web.app import make_app
from phs_milvus.web.backend import Backend
from phs_milvus.web.renditions import Renditions
from phs_milvus.web.rerank import RerankEndpoint
from phs_milvus.web.serving import WebServer
from phs_milvus.web.settings import WebSettings
from phs_milvus.web.site import make_site
from phs_milvus.web.stored import StoredPictures
from tests.web.support import Site, open_encoder

CHROMIUM = os.environ.get("PHS_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., list[Path]]) -> list[Path]:
    """30 pictures of 160 x 120 in a folder of their own."""
    return make_images(tmp_path_factory.mktemp("photos"), 30, seed=8)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, photos: list[Path], encoder: Encoder) -> str:
    """A Milvus Lite that nobody has open, with the photos in "photos" and nothing in "empty"."""
    uri = str(tmp_path_factory.mktemp("milvus") / "page.db")
    client = connect(uri)
    collection = FocusedCollection.create(client, "photos", encoder.info)
    ingest_folder(photos[0].parent, collection, encoder, progress=False)
    FocusedCollection.create(client, "empty", encoder.info)
    close(client)
    return uri


@pytest.fixture(scope="module")
def serve(database: str, address: str) -> Iterator[Callable[..., Site]]:
    """serve(collection="photos", images=None, settings=..., open_encoder=...): the page on a free port."""
    client = connect(database)
    running: list[Callable[[], Any]] = []

    def serve(
        collection: str = "photos",
        *,
        images: str | None = None,
        settings: WebSettings | None = None,
        encoder: Callable[[], Encoder] = lambda: open_encoder(address),
        wait: bool = True,
    ) -> Site:
        settings = settings or WebSettings(port=0)
        # A connection that is the fixture's: several pages use one Lite database.
        backend = Backend(encoder, lambda: _Shared(client), collection)
        renditions = Renditions()
        places = {"program": "phs-milvus", "milvus": database, "collection": collection, "encoder": address}
        service = Service(backend, StoredPictures(images), renditions, places, login=bool(settings.token_file))
        server = WebServer(make_site(service, settings), settings)
        for part in (renditions, backend, server):
            part.__enter__()
            running.append(lambda part=part: part.__exit__(None, None, None))
        until = time.monotonic() + 30
        while wait and backend.state().name != "ready":
            assert time.monotonic() < until, backend.state()
            time.sleep(0.02)
        return Site(server.port, backend)

    yield serve
    for stop in reversed(running):
        stop()
    close(client)


class _Shared:
    """A client that stays open when a page ends."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name) if name != "close" else lambda: None


@pytest.fixture(scope="module")
def site(serve: Callable[..., Site]) -> Site:
    """The page of the photos."""
    return serve()


@pytest.fixture(scope="module")
def rerank_port(encoder: Encoder) -> Iterator[int]:
    """A rerank endpoint, in front of a real embedding server."""
    settings = WebSettings(port=0)
    with WebServer(make_app(RerankEndpoint(encoder).routes, Access(settings), settings), settings) as server:
        yield server.port


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, where it and playwright are installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser tests")
    if CHROMIUM is None:
        pytest.skip("no chromium here (apt-get install chromium, or PHS_TEST_CHROMIUM): no browser tests")
    with playwright.sync_playwright() as driver:
        # Whoever runs CI as root has no sandbox for it; only this page is opened.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
