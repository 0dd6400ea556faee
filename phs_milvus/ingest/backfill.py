"""States for the rows of a collection that somebody else fills, so that it can be searched by pointing.

    collection = FocusedCollection.attach(client, "products", model=encoder.info)
    print(backfill(collection, encoder, images="https://images.example.com/{file}"))

It may be interrupted at any time, kill -9 included, and continues when it is run again: only rows without a state, and
those whose embedding has changed, are encoded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import (
    CollectionError,
    ImageError,
    InvalidInput,
    ModelMismatch,
    PhsError,
    reason_of,
)
from phs_milvus.contract.images import EncodedImage, ImageSource, load_image
from phs_milvus.contract.types import Encoding
from phs_milvus.ingest.encoding import THREADS, encoded
from phs_milvus.ingest.files import chunks, until
from phs_milvus.ingest.patience import PATIENCE_S, long_work
from phs_milvus.ingest.progress import FAILURES_KEPT, BackfillReport, Progress, ProgressBar
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id
from phs_milvus.milvus.side import Attachment, NewState, SideStates, hash_of
from phs_milvus.search.sources import RowFinder, Unreachable, row_finder

# A stored embedding is the model's own if it is at least so similar to a new one. Half precision and another kernel
# stay above .999; another resizing or a centre crop is below .98 on photos.
AGREEMENT = 0.99
# So many rows are looked at before it is said that the collection is of another model, or the pictures elsewhere.
_ENOUGH_COMPARED, _ENOUGH_MISSING, _ENOUGH_UNREACHABLE = 24, 64, 64
_ROWS_PER_PAGE = 4096  # their embeddings are in memory
_MOST_ROWS = 100_000

RowPicture: TypeAlias = "Callable[[dict[str, Any]], ImageSource | None]"


def backfill(
    collection: FocusedCollection,
    encoder: Encoder,
    images: str | Path | RowPicture | None = None,
    *,
    image_field: str | None = None,
    prune: bool = False,
    keep_going: bool = False,
    batch_size: int = 256,
    progress: Progress = True,
    stop: threading.Event | None = None,
    patience: float = PATIENCE_S,
) -> BackfillReport:
    """Encodes the pictures of an attached collection's rows and stores their states beside it.

    A row gets a state only if the model gives its picture the embedding that the row has already, up to a cosine of
    .99. If most rows do not agree, the backfill stops: the collection was filled by another model, from other pictures,
    or with other preprocessing, and states would rank it wrongly.

    Args:
        collection: from `FocusedCollection.attach` without a state field.
        encoder: a client of the embedding server that runs the collection's model.
        images, image_field: where the pictures are; see `phs_milvus.search.sources.row_finder`. `images` may also be a
            function from a row, a dict of all its fields but vectors, to its picture. None for both: as the last time.
        prune: whether to delete the states of rows that are gone.
        keep_going: whether to go on where most rows do not agree, or the first pictures are missing, as where the
            oldest rows were made otherwise than the rest; those that do not agree get no state.
        batch_size: states per write.
        progress: True for a bar on stderr, False for none, or a function called with (rows done, rows in all).
        stop: set it, from any thread, to end early, as `ingest_folder` does.
        patience: seconds to go on trying while Milvus does not answer, as while it restarts; each time anew.

    Raises:
        InvalidInput: an argument cannot be used; `.field` names it.
        ModelMismatch: most stored embeddings are not of the encoder's model, or the encoder runs another one.
        ImageError: not one of the first pictures can be found, or their server is no longer reached.
        CollectionError: the collection was not attached with a side collection.
        MilvusUnavailable: Milvus no longer answers. The next run goes on from what is stored.
        EncoderError: the embedding server no longer answers. What was encoded by then is stored.
    """
    started = time.monotonic()
    side = collection.side
    if side is None:
        raise CollectionError(
            f"collection {collection.name!r} has its states in its own rows; attach it without state_field to keep "
            "them apart"
        )
    if not 1 <= batch_size <= _MOST_ROWS:
        raise InvalidInput(f"batch_size is 1 to {_MOST_ROWS:,}, got {batch_size}", "batch_size")
    collection.check_model(encoder.info)
    find, where = _finder(collection, side, images, image_field)
    stop = stop or threading.Event()
    run = _Run(collection, side, encoder, find, batch_size, stop, keep_going)
    run.report.rows = collection.count()
    with long_work(collection, progress, run.report.rows, patience, lambda: f"{run.report.written:,} states") as bar:
        run.encode_all(bar)
        # Only now, when pictures were found there, is it worth remembering.
        if where is not None and (run.report.written or run.report.fitting):
            side.remember(where)
        if prune and not stop.is_set():
            run.prune()
        if run.report.written:
            side.flush()
    run.report.seconds = time.monotonic() - started
    return run.report


def _finder(
    collection: FocusedCollection, side: SideStates, images: str | Path | RowPicture | None, image_field: str | None
) -> tuple[RowFinder, Attachment | None]:
    """Where the pictures are, and what to remember of it for searches and for the next time, if anything."""
    if callable(images):
        function = images
        return RowFinder(("*",), lambda _, row: _called(function, dict(row))), None
    known = side.attachment
    if images is None and image_field is None:
        return row_finder(known.images, known.image_field), None
    if images is not None and "://" not in str(images):
        images = Path(images).expanduser().absolute()
    find = row_finder(images, image_field)
    collection.get([], [name for name in find.fields if name != "*"])  # says which fields there are
    return find, Attachment(known.embedding_field, image_field, None if images is None else str(images))


def _called(function: RowPicture, row: dict[str, Any]) -> ImageSource:
    image = function(row)
    if image is None:
        raise ImageError("the function that finds pictures has none")
    return image


@dataclass(eq=False)
class _Work:
    """A row to encode: its key, its stored embedding, and the fields that say where its picture is."""

    id: Id
    embedding: Any
    row: dict[str, Any]
    has_old: bool  # a state, of another embedding
    digest: str = ""


class _Run:
    """One backfill in progress."""

    def __init__(
        self,
        collection: FocusedCollection,
        side: SideStates,
        encoder: Encoder,
        find: RowFinder,
        batch_size: int,
        stop: threading.Event,
        keep_going: bool,
    ) -> None:
        self.report = BackfillReport()
        self._stop = stop
        self._keep_going = keep_going
        self._collection = collection
        self._side = side
        self._encoder = encoder
        self._find = find
        self._batch_size = batch_size
        self._new: list[NewState] = []
        self._outlived: list[Id] = []
        self._unreachable = 0  # in a row
        self._last_error: PhsError | None = None
        self._compared = 0
        self._first_cosines: list[float] = []

    def encode_all(self, bar: ProgressBar) -> None:
        """Makes the state of every row that has none, or one of another embedding."""
        pool = ThreadPoolExecutor(THREADS, "phs-backfill")

        def failed(work: _Work, error: PhsError) -> None:
            self._fail(work, error)
            bar.advance()
            self._last_error = error
            self._check_reachable(error)
            self._check_found(at_least=_ENOUGH_MISSING)

        try:
            rows = until(self._stop, self._outdated(bar))
            for work, encoding in encoded(self._encoder, rows, self._load, failed, pool):
                self._take(work, encoding)
                bar.advance()
            if not self._stop.is_set():
                self._check_agreement(at_least=1)
                self._check_found(at_least=1)
            self._store()
        except CollectionError:
            raise
        except BaseException:
            # After Ctrl-C, another model's rows or the loss of the embedding server, keep what is encoded and agrees.
            with suppress(PhsError):
                self._store()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _outdated(self, bar: ProgressBar) -> Iterator[_Work]:
        """The rows without a fitting state, found by two lookups for many rows."""
        key, embedding = self._collection.layout.id, self._collection.layout.embedding
        wanted = [embedding, *self._find.fields]
        for ids in chunks(until(self._stop, self._collection.iterate_ids()), _ROWS_PER_PAGE):
            made = self._side.hashes(ids)
            for row in self._collection.get(ids, wanted):
                vector = row.pop(embedding)
                if made.get(row[key]) == hash_of(vector):
                    self.report.fitting += 1
                    bar.advance()
                else:
                    yield _Work(row[key], np.asarray(vector, np.float32), row, row[key] in made)

    def _load(self, work: _Work) -> EncodedImage | PhsError:
        try:
            image = load_image(self._find.find(work.id, work.row))
            if len(image.data) > (limit := self._encoder.info.limits.image_bytes):
                raise ImageError(f"{len(image.data):,} bytes; the server takes at most {limit:,}")
            work.digest = image.digest
            return image
        except PhsError as error:
            return error
        except Exception as error:  # of the caller's own function: one picture must not end a backfill
            return ImageError(f"no picture: {reason_of(error)}")

    def _take(self, work: _Work, encoding: Encoding) -> None:
        norm = float(np.linalg.norm(work.embedding.astype(np.float64)))
        cosine = float(work.embedding @ encoding.required("embedding")) / norm if norm > 0 else float("nan")
        self._compared += 1
        self._unreachable = 0
        if len(self._first_cosines) < _ENOUGH_COMPARED:
            self._first_cosines.append(cosine)
        if cosine >= AGREEMENT:  # not NaN
            self._new.append(NewState(work.id, encoding.required("state"), work.embedding, work.digest))
        else:
            self.report.differing += 1
            self._fail(
                work,
                ModelMismatch(
                    f"the stored embedding has cosine {cosine:.3f} to the picture's: another picture, model or "
                    "preprocessing"
                ),
            )
        self._check_agreement(at_least=_ENOUGH_COMPARED)
        if len(self._new) >= self._batch_size:
            self._store()

    def _check_agreement(self, at_least: int) -> None:
        """Raises ModelMismatch if at least so many embeddings were compared, and most do not agree. Rows that had
        their state already agreed when it was made."""
        differing = self.report.differing
        if self._keep_going or self._compared < at_least or 2 * differing <= self._compared + self.report.fitting:
            return
        model = self._encoder.info
        raise ModelMismatch(
            f"{differing} of {self._compared} rows compared have another embedding in field "
            f"{self._collection.layout.embedding!r} than {model.model_id!r} gives for their pictures (median cosine "
            f"{float(np.median(self._first_cosines)):.3f}, wanted {AGREEMENT} or more): collection "
            f"{self._collection.name!r} was filled by another model, from other pictures, or with other preprocessing "
            "(a centre crop, another size); serve the model that filled it, or ingest the pictures anew; if only these "
            "rows are so, leave them without states by keep_going (--keep-going)"
        )

    def _check_reachable(self, error: PhsError) -> None:
        """Raises ImageError if pictures can no longer be fetched."""
        self._unreachable = self._unreachable + 1 if isinstance(error, Unreachable) else 0
        if self._unreachable >= _ENOUGH_UNREACHABLE:
            raise ImageError(f"{self._unreachable} pictures in a row could not be fetched, the last because: {error}")

    def _check_found(self, at_least: int) -> None:
        """Raises ImageError if at least so many pictures were looked for, and not one can be used."""
        failed = self.report.failed_count
        if self._keep_going or failed < at_least or self._compared or self.report.fitting:
            return
        raise ImageError(
            f"none of the first {failed} rows' pictures can be used, the last because: {self._last_error}; say with "
            "images and image_field (--images, --image-field) where they are, or go on by keep_going (--keep-going)"
        )

    def _store(self) -> None:
        new, self._new = self._new, []
        outlived, self._outlived = self._outlived, []
        self._side.write(new)
        self._side.delete(outlived)
        self.report.written += len(new)

    def prune(self) -> None:
        """Deletes the states of rows that no longer exist."""
        for ids in chunks(until(self._stop, self._side.iterate_ids()), _ROWS_PER_PAGE):
            there = {row[self._collection.layout.id] for row in self._collection.get(ids, [])}
            gone = [row_id for row_id in ids if row_id not in there]
            self._side.delete(gone)
            self.report.pruned += len(gone)

    def _fail(self, work: _Work, error: PhsError) -> None:
        self.report.failed_count += 1
        if work.has_old:  # a search would rank the row by what it was
            self._outlived.append(work.id)
        if len(self.report.failed) < FAILURES_KEPT:
            self.report.failed.append((work.id, str(error)))
