"""Log lines are bounded in length and rate, and never wait for a reader."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator

import pytest

from phs_server.ops import logs


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": level, "levelname": logging.getLevelName(level)})


def handler(writer: logs.Writer) -> logs.BoundedHandler:
    made = logs.BoundedHandler(writer)
    made.setFormatter(logs.TextFormatter("%(levelname)s %(message)s"))
    return made


class Lines(logs.Writer):
    """Keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.lines.append(text)
        return len(text)


def test_a_flood_of_one_level_is_cut_and_counted_and_hides_no_other_level(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    lines = Lines()
    bounded = handler(lines)
    for index in range(10_000):
        bounded.emit(record(f"unique {index}", logging.WARNING))
    assert sum(map(len, lines.lines)) < 40_000
    passed = len(lines.lines)
    bounded.emit(record("an error", logging.ERROR))
    bounded.emit(record("the end", logging.CRITICAL))
    assert [line.split()[-1] for line in lines.lines[-2:]] == ["error", "end"]
    now += 60
    bounded.emit(record("calm", logging.WARNING))
    assert f"{10_000 - passed} more lines" in lines.lines[-1]


def test_critical_lines_pass_however_many_there_were() -> None:
    lines = Lines()
    bounded = handler(lines)
    for _ in range(1000):
        bounded.emit(record("x" * 500, logging.CRITICAL))
    assert len(lines.lines) == 1000


def test_a_line_is_no_longer_than_so_much() -> None:
    lines = Lines()
    handler(lines).emit(record("start" + "x" * 10**6 + "end"))
    assert len(lines.lines[0]) < 3000 and "start" in lines.lines[0] and "end" in lines.lines[0]
    text = logs.JsonFormatter().format(record("y" * 10**6))
    assert len(text) < 3000 and json.loads(text)["message"].startswith("yyy")


def test_writing_into_a_full_pipe_returns_at_once_and_goes_on_when_it_is_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = logs.Writer(writing)
    for index in range(5000):
        writer.write(f"{index} {'x' * 200}\n")
    writer.drain(0.1)  # the pipe holds 64 KiB; nobody reads
    read = b""
    until = time.monotonic() + 30
    while b"4999 " not in read:
        assert time.monotonic() < until
        read += os.read(reading, 65536)
    writer.drain(10)
    assert b"\n0 " not in read[1:] or len(read) < 5000 * 200, "the oldest lines were to be dropped"


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = logs.Writer(writing)
    for _ in range(3):
        writer.write("nobody reads this\n")
        writer.drain(10)
    assert not writer._waiting and not writer._writing
    os.close(writing)
