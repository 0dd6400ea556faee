"""The bench methods are measured on: a dataset behind one model, every image encoded once.

Q = queries, K = images, H = heads, D = hidden size, E = embedding size, N = patches.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.grid import shares_on_grid
from phs_milvus.contract.images import load_image
from phs_milvus.contract.types import Float16Array, Float32Array, Focus, MaskRuns
from phs_milvus.evaluation.datasets import Dataset
from phs_milvus.evaluation.edits import Edit
from phs_milvus.evaluation.memo import Memo
from phs_milvus.evaluation.painting import Drawing, painted
from phs_milvus.evaluation.queries import ObjectQuery
from phs_milvus.evaluation.store import Look, Seen, Store

BoolArray = npt.NDArray[np.bool_]

# Scores asked for in one call: seconds of work and a megabyte of answer, so that neither grows with the dataset.
_PAIRS = 1 << 18
# Seconds for one such call on a server that others use too.
_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Queries with their prompts drawn.

    Attributes:
        images: int64 [Q], positions in the dataset.
        labels: the class each looks for.
        masks: what is pointed at, at each image's size.
    """

    images: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    masks: tuple[MaskRuns, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | npt.NDArray[Any]) -> QuerySet:
        """Some of the queries, in the order given."""
        chosen = [int(row) for row in rows]
        return QuerySet(
            self.images[chosen], tuple(self.labels[r] for r in chosen), tuple(self.masks[r] for r in chosen)
        )


class Ask(NamedTuple):
    """A way to look at a query that takes an encoding of its own: under an edit of its pixels, or under a focus."""

    edit: Edit | None = None
    focus: Focus = Focus.paper()


class Bench:
    """A dataset and a model. What methods need is here: states, looks, readouts and reranking.

    Args:
        milvus: where two-stage methods make a collection of their own, which `close` drops; None: Milvus Lite in a
            temporary folder.
        token: token of the Milvus server.

    Attributes:
        seconds: where the time went, by stage.
        memo: matrices that methods share.
    """

    def __init__(
        self, encoder: Encoder, dataset: Dataset, store: Store, *, milvus: str | None = None, token: str = ""
    ) -> None:
        self.encoder = encoder
        self.info = encoder.info
        self.dataset = dataset
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.memo = Memo()
        self._store = store
        self._milvus = milvus
        self._token = token
        self._to_drop: tuple[Any, str] | None = None
        self._shares: dict[tuple[int, int, bytes], Float32Array] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def queries(self, queries: Sequence[ObjectQuery], prompt: Drawing) -> QuerySet:
        """Draws the queries' prompts.

        Args:
            prompt: "box", "point" or "segmentation", or a function of a query and its image's width and height.

        Raises:
            PromptError: a query that cannot be pointed at so, with its image and class; `paintable` leaves these out.
        """
        masks = tuple(painted(query, prompt, self.dataset, self.sizes) for query in queries)
        images = np.array([query.image for query in queries], np.int64)
        return QuerySet(images, tuple(query.instance.label for query in queries), masks)

    # --- the database -------------------------------------------------------------------------------------------------

    @cached_property
    def digests(self) -> list[str]:
        """sha256 of every image file."""
        with self.timed("reading files"):
            return [hashlib.sha256(image.path.read_bytes()).hexdigest() for image in self.dataset.images]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of every upright image."""
        with self.timed("reading files"):
            loaded = (load_image(image.path) for image in self.dataset.images)
            return [(image.width, image.height) for image in loaded]

    @cached_property
    def _seen(self) -> list[Seen]:
        looks = [Look(image.path, digest) for image, digest in zip(self.dataset.images, self.digests, strict=True)]
        with self.timed("encoding images"):
            return self._store.see(looks, self.encoder, "images")

    @cached_property
    def states(self) -> Float16Array:
        """float16 [K, 2, D]."""
        return np.stack([seen.state for seen in self._seen])

    @cached_property
    def attention(self) -> Float32Array:
        """float32 [K, H, N], the whole images'."""
        return np.stack([seen.attention for seen in self._seen if seen.attention is not None])

    @cached_property
    def embeddings(self) -> Float32Array:
        """float32 [K, E], the whole images', every head at weight 1."""
        return self.readout(self.states, np.ones((len(self.states), self.info.heads), np.float32))

    @cached_property
    def collection(self) -> Any:
        """A real Milvus collection of the dataset's embeddings and states; ids are positions in the dataset."""
        from phs_milvus.milvus.collection import FocusedCollection
        from phs_milvus.milvus.connection import close, connect
        from phs_milvus.milvus.rows import Row

        self._temporary = tempfile.TemporaryDirectory()
        client = connect(self._milvus or str(Path(self._temporary.name) / "eval.db"), self._token)
        # The server may be one in use: a name that no one else has.
        name = f"phs_eval_{uuid.uuid4().hex}"
        try:
            # Exactly what the exhaustive methods read: their differences are of methods, not of rounding.
            collection = FocusedCollection.create(client, name, self.info, state_format="float16")
        except BaseException:
            close(client)
            raise
        self._to_drop = client, name
        with self.timed("filling Milvus"):
            rows = [
                Row(id=f"{index:08d}", embedding=embedding, state=state)
                for index, (embedding, state) in enumerate(zip(self.embeddings, self.states, strict=True))
            ]
            collection.insert(rows)
            collection.flush()
        return collection

    @cached_property
    def search(self) -> Any:
        """The product's own `FocusedSearch` in `collection`."""
        from phs_milvus.search.focused import FocusedSearch

        return FocusedSearch(self.collection, self.encoder)

    def relevant(self, queries: QuerySet) -> BoolArray:
        """bool [Q, K]: which images hold an object of the query's class."""
        return np.stack([self._present[label] for label in queries.labels])

    @cached_property
    def _present(self) -> dict[str, BoolArray]:
        """bool [K] by class: which images hold an object of it."""
        present = {label: np.zeros(len(self.dataset.images), np.bool_) for label in self.dataset.labels}
        for position, image in enumerate(self.dataset.images):
            for instance in image.instances:
                present[instance.label][position] = True
        return present

    # --- what methods ask ---------------------------------------------------------------------------------------------

    def look(
        self, queries: QuerySet, *, edit: Edit | None = None, focus: Focus = Focus.paper()
    ) -> tuple[Float16Array, Float32Array]:
        """The queries encoded under an edit or a focus: (states [Q, 2, D], head scores [Q, H])."""
        looks = self._looks(queries, Ask(edit, focus))
        with self.timed("encoding queries"):
            seen = self._store.see(looks, self.encoder, edit.name if edit else "queries")
        return np.stack([s.state for s in seen]), np.stack([s.scores for s in seen])

    def look_ahead(self, queries: QuerySet, asks: Iterable[Ask]) -> None:
        """Encodes the queries in all these ways at once, so that `look` finds them: the looks at one picture then share
        what its prompts do not change."""
        with self.timed("encoding queries"):
            looks = [look for ask in asks for look in self._looks(queries, ask)]
            self._store.fill(looks, self.encoder, "queries")

    def _looks(self, queries: QuerySet, ask: Ask) -> list[Look]:
        images = self.dataset.images
        return [
            Look(images[index].path, self.digests[index], mask, ask.edit, ask.focus)
            for index, mask in zip(queries.images, queries.masks, strict=True)
        ]

    def head_scores(self, queries: QuerySet) -> Float32Array:
        """float32 [Q, H]: share of each head's whole-image attention that falls on the mask; needs no encoding."""
        with self.timed("masks"):
            shares = np.stack([self._shares_of(mask) for mask in queries.masks])
            return np.einsum("qhn,qn->qh", self.attention[queries.images], shares)

    def _shares_of(self, mask: MaskRuns) -> Float32Array:
        """float32 [N]; kept, because every head count and control asks for it again."""
        key = (mask.width, mask.height, mask.runs.tobytes())
        if key not in self._shares:
            self._shares[key] = shares_on_grid(mask.to_array(), self.info.grid_height, self.info.grid_width)
        return self._shares[key]

    def readout(self, states: Float16Array, weights: Float32Array) -> Float32Array:
        """float32 [n, E]: states [n, 2, D] read out with weights [n, H]."""
        with self.timed("scoring"):
            return self.encoder.readout(states, weights, timeout=_TIMEOUT_SECONDS)

    def rerank(
        self, embeddings: Float32Array, weights: Float32Array, states: Float16Array | None = None
    ) -> Float32Array:
        """float32 [Q, K]: Query-DB scores, `states` read out with each query's weights; None: the whole database's."""
        states = self.states if states is None else states
        scores = np.empty((len(embeddings), len(states)), np.float32)
        # Queries with equal weights share the readout of a state, so they go together.
        order = np.lexsort(weights.T)
        rows = max(1, _PAIRS // len(states))
        columns = _PAIRS // rows
        with self.timed("scoring"):
            for start in range(0, len(order), rows):
                some = order[start : start + rows]
                for first in range(0, len(states), columns):
                    part = states[first : first + columns]
                    scores[some, first : first + len(part)] = self.encoder.rerank(
                        embeddings[some], weights[some], part, timeout=_TIMEOUT_SECONDS
                    )
        return scores

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what happens inside to `seconds`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def close(self) -> None:
        """Drops the collection, if one was made, also where filling it failed."""
        if self._to_drop is not None:
            from phs_milvus.milvus.connection import close, translated_errors

            client, name = self._to_drop
            self._to_drop = None
            try:
                with translated_errors(f"cannot drop collection {name!r}"):
                    if client.has_collection(name):
                        client.drop_collection(name)
            finally:
                close(client)
        if self._temporary is not None:
            self._temporary.cleanup()
