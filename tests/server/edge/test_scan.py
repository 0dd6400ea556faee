"""Scan over real gRPC: the order and the scores of Rerank over all states, keys, and every refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from phs_milvus import Encoder
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract._pb import encoder_pb2_grpc as pb_grpc
from phs_milvus.contract.errors import DeadlineExceeded, InvalidInput
from phs_server.app import ServerThread
from tests.server.edge.states_files import AT, states, write_states
from tests.server.edge.support import HEADS, HIDDEN, failure, open_channel, settings

ROWS = 950
NAMES = [f"bild-ä{row:04d}.jpg" for row in range(ROWS)]
STATES = states(ROWS)
RNG = np.random.default_rng(1)
EMBEDDINGS = RNG.standard_normal((3, HIDDEN)).astype(np.float32)
WEIGHTS = np.stack([*RNG.random((2, HEADS), np.float32), np.ones(HEADS, np.float32)])
SHARES = np.array([[0.5, 0, 0.5], [1, -0.5, 0.25]], np.float32)


@pytest.fixture(scope="module")
def scanning(tiny_model: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """A client of a server with a file of ROWS states."""
    file = tmp_path_factory.mktemp("states") / "photos.states"
    write_states(file, encoder.info.fingerprint, NAMES, STATES)
    with ServerThread(settings(tiny_model, states=str(file))) as server, Encoder(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def scores(scanning: Encoder) -> np.ndarray:
    """float32 [3, ROWS], by Rerank."""
    return scanning.rerank(EMBEDDINGS, WEIGHTS, STATES)


def best(scores: np.ndarray, limit: int) -> list[str]:
    return [NAMES[row] for row in np.argsort(-scores, kind="stable")[:limit]]


@pytest.mark.parametrize("limit", [1, 10, 700, ROWS, 16_384])
def test_a_scan_is_a_rerank_of_every_state(scanning: Encoder, scores: np.ndarray, limit: int) -> None:
    found = scanning.scan(EMBEDDINGS, WEIGHTS, limit=limit)
    assert (found.collection, found.exported_at, found.rows, found.scored) == ("photos", AT, ROWS, ROWS)
    for ranking, expected in zip(found.rankings, scores, strict=True):
        assert ranking.keys == best(expected, limit)
        np.testing.assert_allclose(ranking.scores, -np.sort(-expected)[:limit], atol=1e-6)
        assert ranking.query_scores is None


def test_shares_rank_by_the_sum_and_show_the_parts(scanning: Encoder, scores: np.ndarray) -> None:
    found = scanning.scan(EMBEDDINGS, WEIGHTS, limit=20, shares=SHARES)
    for ranking, shares in zip(found.rankings, SHARES, strict=True):
        assert ranking.keys == best(shares @ scores, 20)
        rows = [NAMES.index(key) for key in ranking.keys]
        np.testing.assert_allclose(ranking.query_scores, scores[:, rows].T, atol=1e-6)
        np.testing.assert_allclose(ranking.scores, ranking.query_scores @ shares, atol=1e-6)


def test_only_rows_with_the_keys_are_looked_at(scanning: Encoder, scores: np.ndarray) -> None:
    rows = [3, 99, 100, 101, 500, 949]
    keys = [NAMES[row] for row in reversed(rows)]
    found = scanning.scan(EMBEDDINGS, WEIGHTS, limit=4, keys=[*keys, keys[0], "nobody's.jpg", ""])
    assert (found.rows, found.scored) == (ROWS, len(rows))
    for ranking, expected in zip(found.rankings, scores, strict=True):
        assert ranking.keys == [NAMES[rows[at]] for at in np.argsort(-expected[rows])[:4]]
    for none in ([], ["nobody's.jpg"]):
        found = scanning.scan(EMBEDDINGS, WEIGHTS, keys=none)
        assert found.scored == 0 and [ranking.keys for ranking in found.rankings] == [[], [], []]


def test_of_equal_scores_the_first_in_the_file_are_the_best(tiny_model: Path, encoder: Encoder, tmp_path: Path) -> None:
    same = states(1)[np.zeros(300, int)]
    file = write_states(tmp_path / "numbers.states", encoder.info.fingerprint, range(-5, 295), same, batch=70)
    with ServerThread(settings(tiny_model, states=str(file))) as server, Encoder(server.address) as client:
        found = client.scan(EMBEDDINGS[:1], WEIGHTS[:1], limit=120)
        assert found.rankings[0].keys == list(range(-5, 115))
        assert client.scan(EMBEDDINGS[:1], WEIGHTS[:1], keys=[7, 2**62, -5]).rankings[0].keys == [-5, 7]
        with pytest.raises(InvalidInput, match="numbers, not texts"):
            client.scan(EMBEDDINGS[:1], WEIGHTS[:1], keys=["7"])


def request(**changes: object) -> pb.ScanRequest:
    made = wire.scan_request(EMBEDDINGS, WEIGHTS, 5)
    for name, value in changes.items():
        if isinstance(value, int):
            setattr(made, name, value)
        else:
            getattr(made, name).CopyFrom(value)
    return made


def tensor(*shape: int, value: float = 1) -> pb.Tensor:
    return wire.tensor_to_pb(np.full(shape, value, np.float32))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("limit", {"limit": 0}),
        ("limit", {"limit": 16_385}),
        ("limit", {"limit": 10**9}),
        ("embeddings", {"embeddings": tensor(0, HIDDEN)}),
        ("embeddings", {"embeddings": tensor(65, HIDDEN), "head_weights": tensor(65, HEADS)}),
        ("embeddings", {"embeddings": tensor(3, HIDDEN, value=0)}),
        ("head_weights", {"head_weights": tensor(2, HEADS)}),
        ("head_weights", {"head_weights": tensor(3, HEADS, value=1e6)}),
        ("shares", {"shares": tensor(1, 2)}),
        ("shares", {"shares": tensor(0, 3)}),
        ("shares", {"shares": tensor(65, 3)}),
        ("shares", {"shares": tensor(1, 3, value=1e9)}),
        ("shares", {"shares": tensor(1, 3, value=np.nan)}),
        ("keys", {"keys": pb.Keys(numbers=b"\0" * 16)}),
        ("keys", {"keys": pb.Keys(numbers=b"\0" * 7)}),
        ("keys", {"keys": pb.Keys(numbers=b"\0" * 8, texts=b"a", ends=b"\1\0\0\0")}),
        ("keys", {"keys": pb.Keys(texts=b"a", ends=b"\1\0\0")}),
        ("keys", {"keys": pb.Keys(texts=b"a", ends=b"\2\0\0\0")}),
        ("keys", {"keys": pb.Keys(texts=b"a")}),
        ("keys", {"keys": pb.Keys(ends=bytes(4 * (2**22 + 1)))}),
        ("keys", {"keys": pb.Keys(texts=b"abc", ends=b"\2\0\0\0\1\0\0\0\3\0\0\0")}),
        ("keys", {"keys": pb.Keys(texts=b"a", ends=b"\xff\xff\xff\xff\1\0\0\0")}),
        ("keys", {"keys": pb.Keys(texts=b"\xff\xfe", ends=b"\2\0\0\0")}),
    ],
)
def test_requests_that_cannot_be_are_named(scanning: Encoder, field: str, changes: dict[str, object]) -> None:
    with open_channel(scanning.address) as channel:
        error = failure(lambda: pb_grpc.FocusEncoderStub(channel).Scan(request(**changes), timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and error.details().startswith(f"{field}: "), error


def test_more_keys_than_a_message_holds_are_not_sent(scanning: Encoder) -> None:
    long = "x" * 2**20
    for keys, words in ((range(10**9), "takes up to 4194304"), ([long] * 65, "make a message of")):
        with pytest.raises(InvalidInput, match=words) as caught:
            scanning.scan(EMBEDDINGS, WEIGHTS, keys=keys)
        assert caught.value.field == "keys"


@pytest.mark.parametrize("keys", [["a", 1], [1.5], [True], [2**63], ["\udcff"]])
def test_keys_that_are_none_are_not_sent(scanning: Encoder, keys: list[object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        scanning.scan(EMBEDDINGS, WEIGHTS, keys=keys)
    assert caught.value.field == "keys"


def test_a_server_without_a_file_says_how_to_get_one(encoder: Encoder) -> None:
    with pytest.raises(InvalidInput, match="phs-server --states FILE"):
        encoder.scan(EMBEDDINGS, WEIGHTS)


def test_a_deadline_ends_it(scanning: Encoder) -> None:
    with pytest.raises(DeadlineExceeded):
        scanning.scan(EMBEDDINGS, WEIGHTS, timeout=1e-4)


def test_another_model_is_refused(scanning: Encoder) -> None:
    with open_channel(scanning.address) as channel:
        wrong = request()
        wrong.expected_fingerprint = "0" * 64
        error = failure(lambda: pb_grpc.FocusEncoderStub(channel).Scan(wrong, timeout=20))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
