"""Ranks what a framework found, whatever found it: by the states that its documents carry, or by their pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract import state
from phs_milvus.contract.errors import EncoderError, InvalidInput, PhsError, StateError, shown
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Float16Array, Float32Array, Focus
from phs_milvus.search.parts import Parts, parts_of
from phs_milvus.search.queries import Examples, Query, Question, examples_of
from phs_milvus.search.rerank import Reranker
from phs_milvus.search.scores import Score, check_score

STATE_FIELD = "phs_state"


class Candidate(NamedTuple):
    """A document as it is ranked.

    Attributes:
        name: for messages.
        state: packed, by `phs_milvus.contract.state.pack`; None: it has none, and its picture is encoded, which takes
            far longer.
        image: its picture; None: it has none.
    """

    name: str
    state: str | None
    image: ImageSource | None

    @classmethod
    def of(cls, name: object, metadata: Mapping[str, Any], state_field: str, image_field: str) -> Candidate:
        """Of a document whose metadata may hold a state, and the path of a picture."""
        return cls(str(name), metadata.get(state_field), metadata.get(image_field))


@dataclass(frozen=True)
class Ranked:
    """A candidate in its new place.

    Attributes:
        index: its place among those given.
        score: what it is ranked by; None where it could not be scored, and `error` says why.
        scores: all of them, by name: ann_score, query_db_score, blend_score.
    """

    index: int
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What is said of it in its metadata: all scores, or `phs_error`."""
        return {"phs_error": self.error} if self.error else dict(self.scores)


def rank(
    encoder: Encoder,
    question: Question,
    candidates: Sequence[Candidate],
    *,
    focus: Focus = Focus(),
    score: Score = "blend",
    top_k: int | None = None,
) -> list[Ranked]:
    """Candidates by how much they look like what is pointed at, best first; of equal ones the first given.

    The scores are those that `FocusedSearch` gives rows of these states. Candidates that cannot be scored come last.

    Args:
        top_k: candidates to keep; None: all.

    Raises:
        InvalidInput: the question, the score or `top_k` cannot be used; or no candidate has a state or a picture that
            can, which is that of the first one.
        EncoderError: the server could not answer.
    """
    check_score(score, None)
    if top_k is not None and top_k < 1:
        raise InvalidInput(f"must be at least 1 or None, got {top_k}", "top_k")
    if not candidates:
        return []
    states, failed = _states(encoder, candidates)
    if not states:
        raise failed[0]
    found = _scores(encoder, _parts(Reranker(encoder), question, focus), np.stack(list(states.values())))
    order = np.argsort(-found[score], kind="stable")
    indices = list(states)
    ranked = [
        Ranked(indices[row], float(found[score][row]), {f"{name}_score": float(found[name][row]) for name in found})
        for row in order
    ]
    return [*ranked, *(Ranked(index, error=shown(error)) for index, error in failed.items())][:top_k]


def _states(encoder: Encoder, candidates: Sequence[Candidate]) -> tuple[dict[int, Float16Array], dict[int, PhsError]]:
    """The state of each candidate that has one or a picture, and why the others have not, by their places."""
    states: dict[int, Float16Array] = {}
    failed: dict[int, PhsError] = {}
    pictures: dict[int, ImageSource] = {}
    for index, candidate in enumerate(candidates):
        if candidate.state:
            try:
                states[index] = state.unpack([candidate.state], encoder.info.hidden_size, [candidate.name])[0]
            except StateError as error:
                failed[index] = error
        elif candidate.image is not None:
            pictures[index] = candidate.image
        else:
            failed[index] = StateError(
                f"document {shown(candidate.name)!r} has neither a state nor a picture; store "
                "state.pack(encoding.state) in its metadata, or the path of its picture"
            )
    results = encoder.encode_many(pictures.values(), outputs=Outputs(state=True)) if pictures else ()
    for index, result in zip(pictures, results, strict=True):
        if isinstance(result, EncoderError):
            raise result
        if isinstance(result, PhsError):
            failed[index] = result
        else:
            states[index] = result.required("state")
    return dict(sorted(states.items())), dict(sorted(failed.items()))


def _parts(reranker: Reranker, question: Question, focus: Focus) -> Parts:
    """What the states are compared with."""
    encodings = [
        reranker.query(one.image, one.prompt, focus=focus) if isinstance(one, Query) else one  # type: ignore[arg-type]
        for one in examples_of(question)
    ]
    likes = len(question.like) if isinstance(question, Examples) else 1
    return parts_of(encodings[:likes], encodings[likes:])


def _scores(encoder: Encoder, parts: Parts, states: Float16Array) -> dict[str, Float32Array]:
    """Each named score of K states, float32 [K]."""
    query_db = parts.comparison("query_db").scores(encoder, states)
    blend = parts.comparison("blend").scores(encoder, states)
    return {"ann": 2 * blend - query_db, "query_db": query_db, "blend": blend}
