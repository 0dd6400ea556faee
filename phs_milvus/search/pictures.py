"""Finds the picture files of a collection's rows, to show hits and to use rows as queries."""

from __future__ import annotations

import os
from pathlib import Path


def below(root: Path, name: str) -> Path | None:
    """`root`/`name`, or None where `name` is absolute or leads out of `root` by ".."; symbolic links may lead out."""
    path = Path(os.path.normpath(root / name))
    return path if path.is_relative_to(os.path.normpath(root)) else None
