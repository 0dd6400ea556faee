"""A hostile server for the module's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.hostile_server import Hostile


@pytest.fixture(scope="module")
def running() -> Iterator[Hostile]:
    hostile = Hostile()
    yield hostile
    hostile.server.stop(None).wait()


@pytest.fixture
def hostile(running: Hostile) -> Hostile:
    running.change, running.stream = {}, running._streamed
    return running
