"""BulkSession: keys, order, bounds, feeds that wait, restarts of the server, resumption by key."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.journal import Journal
from phs_milvus.client.session import BulkSession
from phs_milvus.contract.errors import EncoderError, EncoderUnavailable, ImageError, InvalidInput, ModelMismatch
from phs_milvus.contract.types import Encoding
from phs_milvus.pointing.prompts import Box
from tests.client.support import Scripted
from tests.servers import ServerProcess

OURS = ("phs-feed", "phs-stream")


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in OURS]


def test_results_come_out_while_the_feed_waits(encoder: Encoder, images: list[Path], embeddings: np.ndarray) -> None:
    waiting: queue.Queue[tuple[str, Path] | None] = queue.Queue()
    with BulkSession(encoder, iter(waiting.get, None)) as session:
        for number in range(3):
            waiting.put((images[number].name, images[number]))
            key, result = next(session)
            assert key == images[number].name
            np.testing.assert_allclose(result.embedding, embeddings[number], atol=1e-5)
        waiting.put(None)
        assert list(session) == []
    wait_for(lambda: not our_threads())


def test_an_item_that_arrives_while_another_is_in_flight_is_sent_at_once(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path]
) -> None:
    """The scripted server answers in pairs: were the second item held back, nothing would ever be answered."""
    _, address = scripted()
    waiting: queue.Queue[tuple[int, Path] | None] = queue.Queue()
    waiting.put((0, images[0]))
    late = threading.Timer(0.5, lambda: [waiting.put((1, images[1])), waiting.put(None)])
    late.start()
    with Encoder(address) as encoder, BulkSession(encoder, iter(waiting.get, None), timeout=30) as session:
        assert [key for key, _ in session] == [1, 0]
    late.join()


@pytest.mark.parametrize(("ordered", "expected"), [(True, [0, 1, 2, 3, 4, 5]), (False, [1, 0, 3, 2, 5, 4])])
def test_in_the_order_of_the_feed_or_as_they_are_finished(
    scripted: Callable[..., tuple[Scripted, str]], images: list[Path], ordered: bool, expected: list[int]
) -> None:
    _, address = scripted()
    with Encoder(address) as encoder, BulkSession(encoder, enumerate(images[:6]), ordered=ordered) as session:
        assert [(key, result.width - 1) for key, result in session] == [(key, key) for key in expected]


def test_ten_thousand_in_bounded_memory(scripted: Callable[..., tuple[Scripted, str]]) -> None:
    """The feed is read no further ahead than `in_flight`, and what was answered is let go: 160 MB pass through."""
    _, address = scripted()
    noise = np.random.default_rng(0).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    taken = given = ahead = 0

    def feed() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for number in range(10_000):
            taken += 1
            yield number, data + number.to_bytes(4, "big")

    def resident_mib() -> float:
        return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024

    with Encoder(address) as encoder:
        data = encoder.open(noise).data
        assert len(data) > 15_000
        before = resident_mib()
        with BulkSession(encoder, feed(), in_flight=32, timeout=60) as session:
            for _ in session:
                given += 1
                ahead = max(ahead, taken - given)
        assert (given, resident_mib() - before < 80) == (10_000, True)
        assert ahead <= 32


def test_what_is_done_is_left_out_and_not_even_read(encoder: Encoder, images: list[Path], tmp_path: Path) -> None:
    called = []

    def picture(number: int) -> Callable[[], Path]:
        return lambda: (called.append(number), images[number])[1]

    with Journal(tmp_path / "done") as done:
        done.add(0), done.add(2), done.add(2)
        with BulkSession(encoder, ((n, picture(n)) for n in range(4)), done=done) as session:
            for key, _ in session:
                done.add(key)
        assert session.skipped == 2 and called == [1, 3]
    with Journal(tmp_path / "done") as done:
        assert len(done) == 4 and 3 in done and "3" not in done
        for wrong in (None, True, (1, 2)):
            with pytest.raises(InvalidInput, match="str, int or bytes"):
                done.add(wrong)
    (tmp_path / "text").write_text("not a journal " * 100)
    for path in (tmp_path, tmp_path / "text"):
        with pytest.raises(InvalidInput) as caught:
            Journal(path)
        assert caught.value.field == "journal" and str(path) in str(caught.value)


def test_a_key_that_the_journal_cannot_hold_is_named(encoder: Encoder, images: list[Path], tmp_path: Path) -> None:
    with Journal(tmp_path / "done") as done:
        for fits in (-(2**63), 2**63 - 1, str(2**63)):
            done.add(fits)
            assert fits in done
        for key, remedy in ((2**63, f"{2**63} has more than 64 bits.*str"), ("\udcff.jpg", r"udcff.*os\.fsencode")):
            for call in (done.add, done.__contains__):
                with pytest.raises(InvalidInput, match=remedy) as caught:
                    call(key)
                assert caught.value.field == "key"
        session = BulkSession(encoder, [(2**64 - 1, images[0])], done=done)
        with session, pytest.raises(InvalidInput, match=str(2**64 - 1)):
            next(session)
        assert len(done) == 3


def test_bad_items_are_results_and_bad_feeds_are_raised(encoder: Encoder, images: list[Path]) -> None:
    def lost() -> Path:
        raise ConnectionError("the shop is closed")

    def feed() -> Iterator[object]:
        yield "good", images[0], Box(10, 10, 90, 90)
        yield "nowhere", "nowhere.jpg"
        yield "lost", lost
        yield "outside", images[0], Box(500, 500, 600, 600)
        raise OSError("the queue is gone")

    session = BulkSession(encoder, feed(), ordered=True)
    results = [next(session) for _ in range(4)]
    assert [key for key, _ in results] == ["good", "nowhere", "lost", "outside"]
    assert isinstance(results[0][1], Encoding) and all(isinstance(result, InvalidInput) for _, result in results[1:])
    assert isinstance(results[2][1], ImageError) and "no picture of 'lost': the shop is closed" in str(results[2][1])
    np.testing.assert_allclose(
        results[0][1].embedding, encoder.encode(images[0], Box(10, 10, 90, 90)).embedding, atol=1e-5
    )
    with pytest.raises(OSError, match="the queue is gone"):
        next(session)
    for wrong in ("ab", ("a",), ("a", "b", None, 4)):
        with BulkSession(encoder, [wrong]) as session, pytest.raises(InvalidInput, match="yields") as caught:
            next(session)
        assert caught.value.field == "feed"
    with pytest.raises(InvalidInput, match="at least 1"):
        BulkSession(encoder, [], in_flight=0)
    wait_for(lambda: not our_threads())


def test_closing_the_encoder_ends_the_session(address: str, images: list[Path]) -> None:
    def endless() -> Iterator[tuple[str, Path]]:
        while True:
            yield "same", images[0]

    encoder = Encoder(address)
    with BulkSession(encoder, endless()) as session:
        next(session)
        encoder.close()
        with pytest.raises(EncoderUnavailable, match="is closed"):
            list(session)
    wait_for(lambda: not our_threads())


def test_another_model_ends_the_session(address: str, images: list[Path]) -> None:
    with (
        Encoder(address, expected_fingerprint="f" * 64) as encoder,
        BulkSession(encoder, enumerate(images)) as session,
        pytest.raises(ModelMismatch),
    ):
        next(session)


def test_stop_answers_what_was_read_and_close_does_not(encoder: Encoder, images: list[Path]) -> None:
    taken = []

    def endless() -> Iterator[tuple[int, Path]]:
        while True:
            taken.append(len(taken))
            yield taken[-1], images[taken[-1] % 24]

    keys = []
    with BulkSession(encoder, endless(), in_flight=8) as session:
        for key, _ in session:
            keys.append(key)
            if len(keys) == 20:
                threading.Thread(target=session.stop).start()
    # One more may have been taken while stop() was called, and was dropped.
    assert sorted(keys) == list(range(len(keys))) and 0 <= len(taken) - len(keys) <= 1
    waiting: queue.Queue[tuple[int, Path]] = queue.Queue()
    with BulkSession(encoder, iter(waiting.get, None)) as session:
        threading.Timer(0.2, session.stop).start()
        assert list(session) == []  # although the feed never ends
    waiting.put((0, images[0]))
    with BulkSession(encoder, endless(), in_flight=8) as session:
        next(session)
    assert list(session) == []
    wait_for(lambda: not our_threads())


def test_stop_answers_the_picture_that_is_being_read(encoder: Encoder, images: list[Path]) -> None:
    reading, stopped = threading.Event(), threading.Event()

    def slow() -> Path:
        reading.set()
        assert stopped.wait(30)
        return images[0]

    def stop() -> None:
        assert reading.wait(30)
        session.stop()
        stopped.set()

    with BulkSession(encoder, [("slow", slow), ("next", images[1])]) as session:
        threading.Thread(target=stop).start()
        assert [key for key, _ in session] == ["slow"]
    with BulkSession(encoder, enumerate(images)) as session:
        session.stop()
        assert list(session) == []  # stopped before it began
    wait_for(lambda: not our_threads())


def test_the_server_is_killed_in_the_middle_and_while_the_feed_waits(
    tiny_model: Path, images: list[Path], embeddings: np.ndarray
) -> None:
    waiting: queue.Queue[tuple[int, Path] | None] = queue.Queue()
    for number in range(240):
        waiting.put((number, images[number % 24]))
    found: dict[int, np.ndarray] = {}
    with ServerProcess(tiny_model, precision="float32") as server, Encoder(server.address, timeout=5) as encoder:
        with BulkSession(encoder, iter(waiting.get, None), in_flight=16) as session:
            for key, result in session:
                assert key not in found
                found[key] = result.embedding
                if len(found) == 60:  # 16 in flight
                    server.kill()
                    server.restart()
                if len(found) == 240:  # none in flight
                    server.kill()
                    server.restart()
                    server.wait_until_ready()
                    waiting.put((240, images[0]))
                    waiting.put(None)
        server.kill()
        with BulkSession(encoder, enumerate(images), timeout=1) as session, pytest.raises(EncoderError):
            next(session)
        assert 0 in session.unanswered and set(session.unanswered) <= set(range(24))
    np.testing.assert_allclose([found[key] for key in range(240)], np.tile(embeddings, (10, 1)), atol=1e-5)
    np.testing.assert_allclose(found[240], embeddings[0], atol=1e-5)


PROGRAM = """
import sys
from pathlib import Path
from phs_milvus import BulkSession, Encoder, Journal
address, folder, journal = sys.argv[1:]
with Encoder(address) as encoder, Journal(journal) as done:
    with BulkSession(encoder, ((p.name, p) for p in sorted(Path(folder).iterdir())), done=done, in_flight=4) as session:
        for key, _ in session:
            print(key, flush=True)
            done.add(key)
    print("skipped", session.skipped, flush=True)
"""


def test_a_client_that_was_killed_goes_on_where_it_was(
    address: str, make_images: Callable[..., list[Path]], tmp_path: Path
) -> None:
    names = {path.name for path in make_images(tmp_path / "images", 60)}
    command = [sys.executable, "-c", PROGRAM, address, str(tmp_path / "images"), str(tmp_path / "done")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        before = [process.stdout.readline().strip() for _ in range(25)]
        process.kill()
    with Journal(tmp_path / "done") as done:
        kept = len(done)
    # What the process printed before it was killed, and was not read here, is done as well.
    assert kept >= 24 and set(before) <= names
    *after, last = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    assert last == f"skipped {kept}" and len(after) == 60 - kept and len(set(after)) == len(after)
    assert Image.open(tmp_path / "images" / after[-1]).size == (160, 120)
    with Journal(tmp_path / "done") as done:
        assert all(name in done for name in names)
