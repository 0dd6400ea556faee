"""Telling how far a long job is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

Progress: TypeAlias = "bool | Callable[[int, int], None]"


class ProgressBar:
    """Counts files.

    Args:
        progress: True for a bar on stderr, False for nothing, or a function called with (done, total).
        total: as far as is known; more may come.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._done = 0
        self._total = total
        self._call = progress if callable(progress) else None
        self._tqdm: Any = None
        if progress is True:
            from tqdm import tqdm

            # On a terminal a line that moves; in a log a line now and then.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            self._tqdm = tqdm(total=total, unit=" images", file=sys.stderr, mininterval=interval)

    def advance(self) -> None:
        """One more file is done, whatever became of it."""
        self._done += 1
        if self._tqdm is not None:
            self._tqdm.update()
        if self._call is not None:
            self._call(self._done, max(self._total, self._done))

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._tqdm is not None:
            self._tqdm.close()
