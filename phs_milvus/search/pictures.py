"""Where the pictures of a collection are, so that hits can be shown and rows used as queries."""

from __future__ import annotations

import os
from pathlib import Path


def below(root: Path, name: str) -> Path | None:
    """`root`/`name`; None where `name` leads out of `root`, being absolute or by way of "..": links may lead out."""
    path = Path(os.path.normpath(root / name))
    return path if path.is_relative_to(os.path.normpath(root)) else None
