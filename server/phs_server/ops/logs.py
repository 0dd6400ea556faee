"""Log lines as text for people or as JSON, one object per line, for machines; bounded, and never in the way.

Anybody who reaches the port can cause log lines. So a line has a largest length, lines of one level have a largest
rate, and a thread of its own writes them: where stderr is a pipe that nobody reads, lines are lost and calls are not.
"""

from __future__ import annotations

import io
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from datetime import datetime, timezone

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Bytes: of one line; of one level at once, and then for each second.
_LONGEST, _BURST, _RATE = 4096, 32_768, 4096
_MOST_WAITING = 1000
# A pipe that can be written to takes at least so much without waiting.
_PIECE = getattr(select, "PIPE_BUF", 512)


class JsonFormatter(logging.Formatter):
    """time (UTC, ISO 8601), level, logger, message, whatever was given as `extra`, and error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(record.getMessage()),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            line["error"] = shortened(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        return shortened(super().format(record))


class Writer(io.TextIOBase):
    """Writes to a file descriptor from a thread of its own, and drops what it does not take. Stands in for stderr.

    Args:
        descriptor: stays open and as it is: another process may share it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._changed = threading.Condition()
        self._writing = False
        threading.Thread(target=self._work, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        with self._changed:
            self._waiting.append(text.encode(errors="replace"))
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float) -> None:
        """Waits until everything is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._writing, seconds)

    def fileno(self) -> int:
        return self._descriptor

    def _work(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                data, self._writing = self._waiting.popleft(), True
            try:
                while data:
                    select.select([], [self._descriptor], [])
                    data = data[os.write(self._descriptor, data[:_PIECE]) :]
            except (OSError, ValueError):
                continue  # a full disk, or nobody there to read it


class BoundedHandler(logging.Handler):
    """Lets lines of each level pass up to a rate in bytes, and says how many it did not; critical ones always pass."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer
        self._budgets: dict[int, float] = {}
        self._looked: dict[int, float] = {}
        self._left_out: dict[int, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        level, now = record.levelno, time.monotonic()
        earned = _RATE * (now - self._looked.get(level, now))
        budget = min(float(_BURST), self._budgets.get(level, float(_BURST)) + earned)
        self._looked[level], self._budgets[level] = now, budget
        if budget < _LONGEST and level < logging.CRITICAL:
            self._left_out[level] = self._left_out.get(level, 0) + 1
            return
        if left_out := self._left_out.pop(level, 0):
            record.msg = f"{record.msg} [{left_out} more lines of this level were left out before]"
        line = self.format(record) + "\n"
        self._budgets[level] -= len(line)
        self._writer.write(line)


def shortened(text: str) -> str:
    """The text, without its middle where it is long."""
    if len(text) <= _LONGEST // 2:
        return text
    return f"{text[: _LONGEST // 4]} ... {text[-_LONGEST // 4 :]}"


def configure(level: str, form: str) -> Writer:
    """Sends logs, and whatever else Python writes there, to stderr; `form` is "text" or "json"."""
    sys.stderr.flush()
    writer = Writer(sys.stderr.fileno())
    sys.stderr = writer
    handler = BoundedHandler(writer)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    logging.captureWarnings(True)  # Pillow's, about images with corrupt metadata
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    return writer
