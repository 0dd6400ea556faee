"""Scans of the contract <-> our types, and keys as they travel."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

import numpy as np

from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import InvalidInput
from phs_milvus.contract.scanning import (
    MOST_ALLOWED,
    MOST_KEYS,
    MOST_QUERIES,
    Key,
    PackedKeys,
    ScanInputs,
    Scanned,
    ScanRanking,
)
from phs_milvus.contract.types import Float32Array, ModelInfo
from phs_milvus.contract.wire.states import check_lengths, checked_weights
from phs_milvus.contract.wire.tensors import tensor_from_pb, tensor_to_pb

# What a query may weigh in a ranking.
_MOST_SHARE = 1e3


def scan_request(
    embeddings: Float32Array,
    head_weights: Float32Array,
    limit: int,
    keys: Sequence[Key] | None = None,
    shares: Float32Array | None = None,
    expected_fingerprint: str = "",
) -> pb.ScanRequest:
    """Builds a ScanRequest from embeddings [Q, E], head weights [Q, H] and shares [R, Q].

    Raises:
        InvalidInput: keys that are neither all texts nor all 64-bit integers.
    """
    return pb.ScanRequest(
        embeddings=tensor_to_pb(embeddings),
        head_weights=tensor_to_pb(head_weights),
        limit=limit,
        keys=None if keys is None else keys_to_pb(keys),
        shares=None if shares is None else tensor_to_pb(shares),
        expected_fingerprint=expected_fingerprint,
    )


def scan_inputs(request: pb.ScanRequest, info: ModelInfo) -> ScanInputs:
    """Validates a ScanRequest.

    Raises:
        InvalidInput: a tensor does not fit the model or the others, numbers are too large to compute with, too many
            queries, a limit that is not 1 to MOST_KEYS, or keys that cannot be read.
    """
    embeddings = tensor_from_pb(request.embeddings, "embeddings", np.float32, [None, info.embedding_size])
    if not 1 <= len(embeddings) <= MOST_QUERIES:
        raise InvalidInput(f"are {len(embeddings)}; a scan takes 1 to {MOST_QUERIES}", "embeddings")
    weights = tensor_from_pb(request.head_weights, "head_weights", np.float32, [len(embeddings), info.heads])
    checked_weights(weights)
    check_lengths(embeddings, "embeddings")
    if not 1 <= request.limit <= MOST_KEYS:
        raise InvalidInput(f"is 1 to {MOST_KEYS}, got {request.limit}", "limit")
    shares = None
    if request.HasField("shares"):
        shares = tensor_from_pb(request.shares, "shares", np.float32, [None, len(embeddings)])
        if not 1 <= len(shares) <= MOST_QUERIES:
            raise InvalidInput(f"are for {len(shares)} rankings; a scan makes 1 to {MOST_QUERIES}", "shares")
        if np.abs(shares).max() > _MOST_SHARE:
            raise InvalidInput(f"are from -{_MOST_SHARE:g} to {_MOST_SHARE:g}", "shares")
    keys = keys_from_pb(request.keys, "keys") if request.HasField("keys") else None
    if keys is not None and len(keys) > MOST_ALLOWED:
        raise InvalidInput(f"are {len(keys)}; a scan takes up to {MOST_ALLOWED}", "keys")
    return ScanInputs(embeddings, weights, request.limit, keys, shares)


def scanned_to_pb(scanned: Scanned) -> pb.ScanResponse:
    """Scanned -> message."""
    rankings = [
        pb.ScanRanking(
            keys=keys_to_pb(ranking.keys),
            scores=tensor_to_pb(ranking.scores),
            query_scores=None if ranking.query_scores is None else tensor_to_pb(ranking.query_scores),
        )
        for ranking in scanned.rankings
    ]
    return pb.ScanResponse(
        rankings=rankings,
        collection=scanned.collection,
        exported_at_ms=int(scanned.exported_at.timestamp() * 1000),
        rows=scanned.rows,
        scored=scanned.scored,
    )


def scanned_from_pb(response: pb.ScanResponse, queries: int, limit: int, shares: Float32Array | None) -> Scanned:
    """Validates a ScanResponse to a request of `queries` queries.

    Raises:
        InvalidInput: another number of rankings, more keys than asked for, keys that cannot be read, a tensor of
            another shape, a time that is none, or more rows scored than there are.
    """
    expected = queries if shares is None else len(shares)
    if len(response.rankings) != expected:
        raise InvalidInput(f"are {len(response.rankings)}, not {expected}", "rankings")
    if response.scored > response.rows:
        raise InvalidInput(f"is {response.scored} of {response.rows} rows", "scored")
    try:
        at = datetime.fromtimestamp(response.exported_at_ms / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(f"is {response.exported_at_ms}", "exported_at_ms") from None
    rankings = []
    for ranking in response.rankings:
        keys = keys_from_pb(ranking.keys, "keys")
        if len(keys) != min(limit, response.scored):
            raise InvalidInput(f"are {len(keys)}, for a limit of {limit} and {response.scored} rows", "keys")
        scores = tensor_from_pb(ranking.scores, "scores", np.float32, [len(keys)])
        of_queries = None
        if shares is not None:
            of_queries = tensor_from_pb(ranking.query_scores, "query_scores", np.float32, [len(keys), queries])
        rankings.append(ScanRanking(keys_of(keys), scores, of_queries))
    return Scanned(rankings, response.collection, at, response.rows, response.scored)


def keys_to_pb(keys: Sequence[Key]) -> pb.Keys:
    """Primary keys -> message; no key at all is a message without any.

    Raises:
        InvalidInput: they are neither all texts nor all 64-bit integers, or a text is no Unicode, or they are too many.
    """
    if all(isinstance(key, str) for key in keys):
        try:
            texts = [str(key).encode() for key in keys]
        except UnicodeEncodeError as error:
            raise InvalidInput(f"hold a text that is not valid Unicode: {error.object!r}", "keys") from None
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        if len(ends) and ends[-1] >= 2**31:
            raise InvalidInput(f"make {ends[-1]} bytes, more than a message can hold", "keys")
        return pb.Keys(texts=b"".join(texts), ends=ends.astype("<u4").tobytes())
    if any(isinstance(key, str | bool) or not isinstance(key, int | np.integer) for key in keys):
        raise InvalidInput("are texts, or integers, and not both", "keys")
    try:
        return pb.Keys(numbers=np.array(keys, "<i8").tobytes())
    except OverflowError:
        raise InvalidInput("hold a number beyond 64 bits", "keys") from None


def keys_from_pb(message: pb.Keys, field: str) -> PackedKeys:
    """Message -> keys, over the message's own bytes. Texts may still be no UTF-8.

    Raises:
        InvalidInput: numbers and texts together, bytes that are cut off, or ends that are not ascending to the last
            byte; `field` is its name.
    """
    if message.numbers and (message.texts or message.ends):
        raise InvalidInput("are numbers or texts, not both", field)
    if len(message.numbers) % 8 or len(message.ends) % 4:
        raise InvalidInput("are cut off: numbers have 8 bytes each, and ends 4", field)
    ends = np.frombuffer(message.ends, "<u4")
    if (ends[1:] < ends[:-1]).any():
        raise InvalidInput("have ends that are not ascending", field)
    if (int(ends[-1]) if len(ends) else 0) != len(message.texts):
        raise InvalidInput("do not end where their texts do", field)
    numbers = np.frombuffer(message.numbers, "<i8") if message.numbers else None
    return PackedKeys(numbers, message.texts, ends)


def keys_of(packed: PackedKeys, field: str = "keys") -> list[Key]:
    """The keys one by one.

    Raises:
        InvalidInput: a text that is no UTF-8.
    """
    if packed.numbers is not None:
        return [int(number) for number in packed.numbers]
    starts = [0, *packed.ends[:-1].tolist()]
    try:
        return [packed.texts[start:end].decode() for start, end in zip(starts, packed.ends.tolist(), strict=False)]
    except UnicodeDecodeError:
        raise InvalidInput("hold a text that is not UTF-8", field) from None
