"""Gives freed memory back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast


def _find_trim() -> Callable[[int], int] | None:
    try:
        return cast("Callable[[int], int]", ctypes.CDLL(None).malloc_trim)
    except (OSError, TypeError, AttributeError):
        return None  # not glibc


_malloc_trim = _find_trim()


def trim() -> None:
    """Returns what glibc keeps of freed memory; does nothing elsewhere.

    glibc keeps freed pieces per thread, of large requests from many callers hundreds of MiB.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)
