"""Finding images on a disk: what is taken, what is left out and why; links, and folders without end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from phs_milvus.ingest.files import IMAGE_EXTENSIONS, LINKED_FILE, LINKED_FOLDER, NO_EXTENSION, walk

MakeImages = Callable[..., list[Path]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def test_walk(root: Path, tmp_path: Path, make_images: MakeImages) -> None:
    make_images(root / "b", 2)
    make_images(root / ".hidden", 1)
    (root / "a.JPG").touch()
    (root / "c.txt").touch()
    (root / "._a.jpg").touch()
    (root / "loop").symlink_to(root)
    (root / "file.jpg").symlink_to(root / "b" / "image-0000.jpg")
    (root / "hid.jpg").symlink_to(root / ".hidden" / "image-0000.jpg")
    (root / "hid-again.jpg").symlink_to(root / "hid.jpg")
    (root / "b" / "z.jpg").symlink_to(tmp_path, target_is_directory=True)
    names = ["a.JPG", "b/image-0000.jpg", "b/image-0001.jpg", "hid-again.jpg"]
    left_out: list[str] = []
    assert list(walk(root, IMAGE_EXTENSIONS, left_out=left_out.append)) == names
    assert sorted(left_out) == [".txt", LINKED_FOLDER, LINKED_FOLDER, LINKED_FILE, LINKED_FILE]
    assert list(walk(root, {".txt"})) == ["c.txt"]
    errors: list[str] = []
    assert list(walk(root / "nowhere", {".txt"}, lambda name, _: errors.append(name))) == []
    assert errors == ["./"]


def test_links_to_themselves_hide_nothing(root: Path, make_images: MakeImages) -> None:
    make_images(root, 2)
    make_images(root / "below", 1)
    (root / "itself").symlink_to("itself")
    (root / "itself.jpg").symlink_to("itself.jpg")
    (root / "here").symlink_to(".")
    (root / "below" / "up").symlink_to("../")
    names = ["below/image-0000.jpg", "image-0000.jpg", "image-0001.jpg", "itself.jpg"]
    assert list(walk(root, IMAGE_EXTENSIONS)) == names


def test_files_without_extension_are_taken_by_their_first_bytes(root: Path, make_images: MakeImages) -> None:
    for path in make_images(root, 2):
        path.rename(path.with_suffix(""))
    (root / "README").write_text("no image")
    (root / "empty").touch()
    os.mkfifo(root / "pipe")
    left_out: list[str] = []
    assert list(walk(root, IMAGE_EXTENSIONS, left_out=left_out.append)) == ["image-0000", "image-0001"]
    assert left_out == [NO_EXTENSION] * 3


def test_walk_goes_deeper_than_python_recurses(root: Path) -> None:
    root.mkdir()
    deep = root
    for _ in range(1010):
        deep = deep / "d"
        deep.mkdir()
    (deep / "a.png").touch()
    try:
        assert list(walk(root, IMAGE_EXTENSIONS)) == ["d/" * 1010 + "a.png"]
    finally:
        (deep / "a.png").unlink()
        os.removedirs(deep)  # pytest's own cleaning up recurses
