"""What the adapters are compared with, and how their docstrings' examples are run."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from phs_milvus import Box, FocusedSearch, Query

BOX = Box(20, 10, 90, 70)


def query(photos: list[Path], number: int = 3) -> Query:
    return Query(photos[number], BOX)


def expected(search: FocusedSearch, asked: Query, **options: Any) -> tuple[list[str], dict[str, float]]:
    """Ids of all rows in the order of a search that looks at each of them, and their scores."""
    result = search.search(asked.image, asked.prompt, limit=100, candidates=1000, **options)
    return [str(hit.id) for hit in result], {str(hit.id): hit.score for hit in result}


def run_example(module: ModuleType, folder: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """Runs the example in a module's docstring in a folder with the pictures it names; returns its variables.

    Args:
        places: what stands in the text, and what this machine has instead: addresses and paths.
    """
    assert module.__doc__
    lines = [line for line in module.__doc__.splitlines() if line.startswith("    ") or not line.strip()]
    code = textwrap.dedent("\n".join(lines))
    assert 5 <= len([line for line in code.splitlines() if line.strip()]) <= 14
    for name in set(re.findall(r'"([\w-]+\.jpg)"', code)):
        Image.effect_noise((400, 300), 90).convert("RGB").save(folder / name)
    for text, here in places.items():
        assert text in code
        code = code.replace(text, here)
    variables: dict[str, Any] = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(code, str(module.__file__), "exec"), variables)
    finally:
        os.chdir(before)
    return variables


def needs(name: str) -> Any:
    """A framework's module; without it the tests of a file are skipped, and say so."""
    return pytest.importorskip(name, reason=f"{name} is not installed here")
