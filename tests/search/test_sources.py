"""Where the pictures of hits are: folders, URLs over a real HTTP server, functions."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from phs_milvus.contract.errors import ImageError, InvalidInput
from phs_milvus.contract.images import load_image
from phs_milvus.search.sources import finder


@pytest.fixture(scope="module")
def folder(make_images: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    make_images(root / "a b", 2)  # type: ignore[operator]
    return root


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


NAME = "a b/image-0001.jpg"


def test_every_kind_of_source_finds_the_same_picture(folder: Path, web: str) -> None:
    data = (folder / NAME).read_bytes()
    for source in (folder, str(folder), web + "/{id}", lambda row_id: folder / row_id, lambda _: data):
        assert load_image(finder(source)(NAME)).data == data


def test_what_is_missing_is_said(folder: Path, web: str) -> None:
    def broken(_: object) -> bytes:
        raise KeyError("shelf")

    for source in (folder, web + "/{id}", lambda _: None, broken):
        find = finder(source)
        with pytest.raises(ImageError, match="none.jpg"):
            load_image(find("none.jpg"))
    with pytest.raises(ImageError, match="row '../secret.jpg': .* leads out of"):
        finder(folder)("../secret.jpg")


def test_a_web_server_that_answers_with_noise() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for noise in (b"not HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nshort"):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(noise)

        threading.Thread(target=answer, daemon=True).start()
        find = finder(f"http://127.0.0.1:{listener.getsockname()[1]}/{{id}}")
        for _ in range(2):
            with pytest.raises(ImageError):
                load_image(find("a.jpg"))


@pytest.mark.parametrize("source", ["no/such/folder", "ftp://host/{id}", "https://host/pictures", "file:///{id}"])
def test_sources_that_cannot_be_used(source: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        finder(source)
    assert caught.value.field == "images"
