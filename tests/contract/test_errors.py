"""What messages say of values and exceptions that others gave."""

from __future__ import annotations

import errno
import os

import pytest

from phs_milvus.contract.errors import reason_of, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("photo.jpg", "photo.jpg"),
        ("two\nlines\tand  more ", "two lines and more"),
        ("bell\a escape\x1b[31m", r"bell\x07 escape\x1b[31m"),
        ("undecodable \udcff.jpg", r"undecodable \udcff.jpg"),
        ("", "(empty)"),
        (7, "7"),
    ],
)
def test_shown_is_one_printable_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_shown_is_short() -> None:
    text = shown("data:image/jpeg;base64," + "A" * 4_000_000 + "Z")
    assert len(text) <= 205 and text.startswith("data:image/jpeg") and text.endswith("AZ") and " ... " in text
    assert len(shown("x" * 10_000, 50)) <= 55
    assert shown("x" * 200) == "x" * 200


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("http://me:secret@host:19530", "http://***@host:19530"),
        ("https://me:se/cr@et@host:19530/db", "https://***@host:19530/db"),
        ("http://me:with space@host", "http://***@host"),
        ("http://token@host", "http://***@host"),
        ("me:secret@host:19530", "***@host:19530"),
        (
            "resolving me:secret@host: failed for 'http://me:secret@host'",
            "resolving ***@host: failed for 'http://***@host'",
        ),
        ("http_proxy=http://me:secret@host:3128", "http_proxy=http://***@host:3128"),
        ("c:/photos/me@home.jpg", "c:/photos/me@home.jpg"),
        ("write to me@home.org", "write to me@home.org"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
    ],
)
def test_shown_tells_no_password(value: str, text: str) -> None:
    assert shown(value) == text


def test_reasons() -> None:
    assert reason_of(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")) == "No space left on device"
    assert reason_of(FileExistsError(errno.EEXIST, "File exists", "x")) == "a file is where a folder is needed"
    assert reason_of(ValueError("y" * 1000)).startswith("yyy") and len(reason_of(ValueError("y" * 1000))) < 210
    assert reason_of(ValueError("two\nlines")) == "two lines"
    assert reason_of(KeyError()) == "KeyError"
