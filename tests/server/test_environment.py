"""What importing the server sets for the libraries that are loaded after it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
import phs_server
assert "torch" not in sys.modules  # which reads it once
print(os.environ["GOMP_SPINCOUNT"])
"""


@pytest.mark.parametrize(("given", "expected"), [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_hardly_spin_unless_the_user_wants_it(given: dict[str, str], expected: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment = {**kept, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
