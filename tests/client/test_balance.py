"""Work on several servers: what goes where, and what becomes of it when one stops or ends."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.balance import Balance, Lanes
from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import DeadlineExceeded, EncoderUnavailable
from phs_milvus.contract.types import Encoding
from tests.client.support import Scripted, listed
from tests.servers import ServerProcess


class Sent:
    """A stream that remembers what it was sent."""

    def __init__(self, server: str | None) -> None:
        self.server, self.items, self.closed = server, list[int](), False

    def send(self, message: SimpleNamespace) -> None:
        self.items.append(message.id)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def world() -> SimpleNamespace:
    """A clock, the streams opened so far by server, and lanes to a and b."""
    made = SimpleNamespace(now=100.0, streams={})

    def opened(server: str | None) -> Sent:
        made.streams[server] = Sent(server)
        return made.streams[server]

    made.lanes = Lanes(["a", "b"], opened, 64, lambda: made.now)
    made.send = lambda number: made.lanes.send(SimpleNamespace(id=number))
    return made


def answer_after(world: SimpleNamespace, seconds: float, server: str, item: int) -> None:
    world.now += seconds
    world.lanes.answered(world.streams[server], item)


def test_items_go_to_the_server_that_answers_first(world: SimpleNamespace) -> None:
    """One server needs 0.1 s for each item, the other 0.5 s."""
    for number in range(60):
        world.send(number)
    assert sorted(len(stream.items) for stream in world.streams.values()) == [2, 2]  # more, when they have answered
    answered: dict[str, list[int]] = {"a": [], "b": []}
    for tick in range(1, 101):
        world.now = 100 + tick / 10
        for server in ("a", "b") if tick % 5 == 0 else ("a",):
            stream = world.streams[server]
            if len(answered[server]) < len(stream.items):
                item = stream.items[len(answered[server])]
                answered[server].append(item)
                if not world.lanes.repeats(stream, item):
                    world.lanes.answered(stream, item)
        world.lanes.tend()
    assert {*answered["a"], *answered["b"]} == set(range(60))
    assert 8 <= len(answered["b"]) <= 13  # a fifth of the other's, as its pace is
    assert len(answered["a"]) + len(answered["b"]) <= 63  # hardly any copies


def test_an_idle_server_gets_copies_of_what_another_is_late_with(world: SimpleNamespace) -> None:
    world.send(0), world.send(1)
    (fast,) = [name for name, stream in world.streams.items() if stream.items == [0]]
    slow = "b" if fast == "a" else "a"
    answer_after(world, 0.1, fast, 0)
    assert world.lanes.tend() is not None and world.streams[fast].items == [0]  # it is not late yet
    world.now += 2
    world.lanes.tend()
    assert world.streams[fast].items == [0, 1]
    answer_after(world, 0.1, fast, 1)
    assert world.lanes.repeats(world.streams[slow], 1)
    assert not world.lanes.repeats(world.streams[slow], 7)  # what was never sent is not a repeat


def test_what_a_broken_stream_left_goes_elsewhere_and_the_server_comes_back(world: SimpleNamespace) -> None:
    for number in range(4):
        world.send(number)
    broken = world.streams["a"]
    left, others = list(broken.items), list(world.streams["b"].items)
    world.lanes.broken(broken)
    assert broken.closed and not world.lanes.is_open(broken)
    for item in others:
        answer_after(world, 0.01, "b", item)
    world.lanes.tend()
    assert set(left) <= set(world.streams["b"].items)
    world.now += 3
    for number in range(4, 30):
        world.send(number)
    assert world.streams["a"] is not broken and len(world.streams["a"].items) == 1  # on trial
    answer_after(world, 0.05, "a", world.streams["a"].items[0])
    world.lanes.tend()
    assert len(world.streams["a"].items) > 2


def test_with_no_server_left_items_wait(world: SimpleNamespace) -> None:
    world.send(0), world.send(1)
    for stream in list(world.streams.values()):
        world.lanes.broken(stream)
    wait = world.lanes.tend()
    assert wait is not None and wait <= 0.1
    world.now += wait + 0.1
    world.lanes.tend()
    assert sorted(world.streams["a"].items + world.streams["b"].items) == [0, 1]


def test_single_calls_go_where_the_fewest_are() -> None:
    now = 0.0
    balance = Balance(["a", "b", "c"], lambda: now)
    assert {balance.order()[0] for _ in range(3)} == {"a", "b", "c"}
    with balance.calling("a"), balance.calling("b"), balance.calling("b"):
        assert all(balance.order() == ["c", "a", "b"] for _ in range(3))
        assert balance.order(["b", "a", "c"]) == ["b", "a", "c"]  # a held picture stays with its server
    with pytest.raises(EncoderUnavailable), balance.calling("c"):
        raise EncoderUnavailable("gone")
    assert all(balance.order()[-1] == "c" for _ in range(3))
    now = 3.0
    assert {balance.order()[0] for _ in range(3)} == {"a", "b", "c"}


class Hanging(Scripted):
    """Takes calls and answers none before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def GetModelInfo(self, request: object, context: object) -> object:
        self.arrivals.append(0.0)
        self.gate.wait(20)
        raise AssertionError("nobody waits for this")


def test_a_server_that_hangs_does_not_take_a_calls_whole_time(
    scripted: Callable[..., tuple[Scripted, str]],
) -> None:
    hanging = Hanging()
    (_, one), (good, two) = scripted(service=hanging), scripted()
    try:
        with Encoder([one, two], timeout=6) as encoder:
            for _ in range(6):
                assert encoder.fetch_info().model_id == "scripted"
            assert len(hanging.arrivals) < 3 and len(good.arrivals) >= 6
        with Encoder(one, timeout=1) as encoder, pytest.raises(DeadlineExceeded):
            encoder.fetch_info()
    finally:
        hanging.gate.set()


@pytest.fixture(scope="module")
def pair(tiny_model: Path) -> Iterator[list[ServerProcess]]:
    with ServerProcess(tiny_model, precision="float32") as one, ServerProcess(tiny_model, precision="float32") as two:
        yield [one, two]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stopped_server_loses_nothing(
    pair: list[ServerProcess], images: list[Path], embeddings: np.ndarray, asynchronous: bool
) -> None:
    stopped, addresses = pair[0].process, [server.address for server in pair]
    rounds = 6

    def feed() -> Iterator[Path]:
        for number, path in enumerate(images * rounds):
            if number == 30:
                stopped.send_signal(signal.SIGSTOP)
            yield path

    async def asynchronously() -> list[object]:
        async with AsyncEncoder(addresses, timeout=60) as encoder:
            return list(await listed(encoder.encode_many(feed(), in_flight=12)))

    try:
        if asynchronous:
            results = asyncio.run(asynchronously())
        else:
            with Encoder(addresses, timeout=60) as encoder:
                results = list(encoder.encode_many(feed(), in_flight=12))
    finally:
        stopped.send_signal(signal.SIGCONT)
    assert all(isinstance(result, Encoding) for result in results)
    got = np.stack([result.embedding for result in results])  # type: ignore[union-attr]
    np.testing.assert_allclose(got, np.tile(embeddings, (rounds, 1)), atol=1e-5)


def test_a_killed_server_loses_nothing(pair: list[ServerProcess], images: list[Path]) -> None:
    def feed() -> Iterator[Path]:
        for number, path in enumerate(images * 4):
            if number == 30:
                pair[0].kill()
            yield path

    with Encoder([server.address for server in pair], timeout=60) as encoder:
        keys = [key for key, result in encoder.encode_many(feed(), keys=range(96), in_flight=12)
                if isinstance(result, Encoding)]  # fmt: skip
    assert keys == list(range(96))
