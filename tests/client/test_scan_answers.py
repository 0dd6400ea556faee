"""What a server answers to a scan is looked at before anybody sees it; and the asyncio client's scan."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from phs_milvus import AsyncEncoder, EncoderError, InvalidInput
from phs_milvus.client import answers
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb

KEYS = ["a", "b", "c", "d"]
REQUEST = wire.scan_request(
    np.ones((2, 8), np.float32), np.ones((2, 4), np.float32), 3, KEYS, np.array([[0.5, 0.5]], np.float32)
)


def tensor(*values: object) -> pb.Tensor:
    return wire.tensor_to_pb(np.array(values, np.float32))


def good() -> pb.ScanResponse:
    ranking = pb.ScanRanking(
        keys=pb.Keys(texts=b"cab", ends=np.array([1, 2, 3], "<u4").tobytes()),
        scores=tensor(0.9, 0.5, 0.5),
        query_scores=tensor([0.8, 1.0], [0.5, 0.5], [0.0, 1.0]),
    )
    return pb.ScanResponse(rankings=[ranking], collection="photos", exported_at_ms=1_700_000_000_000, rows=9, scored=4)


def test_a_right_answer_is_taken() -> None:
    found = answers.scanned(good(), REQUEST, KEYS, "host:1")
    assert found.rankings[0].keys == ["c", "a", "b"] and found.exported_at.year == 2023
    assert (found.collection, found.rows, found.scored) == ("photos", 9, 4)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rankings", lambda answer: answer.ClearField("rankings")),
        ("rankings", lambda answer: answer.rankings.add()),
        ("collection", lambda answer: setattr(answer, "collection", "x" * 5000)),
        ("collection", lambda answer: setattr(answer, "collection", "a\x1b[2J")),
        ("exported_at_ms", lambda answer: setattr(answer, "exported_at_ms", 2**62)),
        ("scored", lambda answer: setattr(answer, "scored", 10)),
        ("keys", lambda answer: setattr(answer, "scored", 2)),
        ("keys", lambda answer: answer.rankings[0].ClearField("keys")),
        ("keys", lambda answer: setattr(answer.rankings[0].keys, "texts", b"cax")),
        ("keys", lambda answer: setattr(answer.rankings[0].keys, "texts", b"ca\xff")),
        ("keys", lambda answer: setattr(answer.rankings[0].keys, "ends", b"\xff" * 12)),
        ("scores", lambda answer: answer.rankings[0].scores.CopyFrom(tensor(0.5, 0.9, 0.5))),
        ("scores", lambda answer: answer.rankings[0].scores.CopyFrom(tensor(0.9, 0.5))),
        ("scores", lambda answer: answer.rankings[0].scores.CopyFrom(tensor(np.nan, 0.5, 0.5))),
        ("scores", lambda answer: answer.rankings[0].query_scores.CopyFrom(tensor([7, 1], [1, 1], [1, 1]))),
        ("query_scores", lambda answer: answer.rankings[0].ClearField("query_scores")),
    ],
)
def test_wrong_answers_are_the_servers_fault(field: str, change: Callable[[pb.ScanResponse], object]) -> None:
    answer = good()
    change(answer)
    with pytest.raises(EncoderError, match=f"wrong answer from the embedding server at host:1: {field}: "):
        answers.scanned(answer, REQUEST, KEYS, "host:1")


def test_the_asyncio_client_scans(address: str) -> None:
    async def run() -> None:
        async with AsyncEncoder(address) as encoder:
            await encoder.scan(np.ones((1, 48), np.float32), np.ones((1, 4), np.float32))

    with pytest.raises(InvalidInput, match="phs-server --states FILE"):
        asyncio.run(run())
