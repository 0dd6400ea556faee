"""Folders of images -> a collection. An ingest may be interrupted at any time, and continues when it is run again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import CollectionError, ImageError, InvalidInput, PhsError
from phs_milvus.contract.images import EncodedImage, load_image
from phs_milvus.contract.types import Encoding
from phs_milvus.ingest.encoding import THREADS, encoded
from phs_milvus.ingest.files import IMAGE_EXTENSIONS, ahead, chunks, is_another, is_gone, sha256_of, until, walk
from phs_milvus.ingest.patience import PATIENCE_S, long_work
from phs_milvus.ingest.progress import FAILURES_KEPT, IngestReport, Progress, ProgressBar
from phs_milvus.milvus.collection import FocusedCollection, Row
from phs_milvus.milvus.rows import check_text

Metadata: TypeAlias = "Callable[[Path], dict[str, Any]]"

_IDS_PER_LOOKUP = 8192  # one call to Milvus, see phs_milvus.milvus.table
_MOST_ROWS = 100_000  # of one write: they wait in memory


def ingest_folder(
    root: str | os.PathLike[str],
    collection: FocusedCollection,
    encoder: Encoder,
    *,
    prune: bool = False,
    batch_size: int = 256,
    progress: Progress = True,
    extensions: Collection[str] = IMAGE_EXTENSIONS,
    metadata: Metadata | None = None,
    patience: float = PATIENCE_S,
    stop: threading.Event | None = None,
) -> IngestReport:
    """Encodes every image below a folder into a collection, and skips files that are stored already and unchanged.

    A row's id is the file's path relative to `root`, with forward slashes; a file is one image, however many links lead
    to it. A row's metadata are `path` (absolute), `width` and `height` (pixels of the upright image) and what
    `metadata` returns. Files that cannot be read, or at which the server stops, are reported and left out until the
    next run; all others are stored. After any interruption, kill -9 included, every stored row is complete.

    Several folders can go into one collection if they share no id: a file whose id belongs to an existing file under
    another root is reported as failed, and the row is kept.

    Args:
        root: the folder, searched recursively.
        collection: where the rows go.
        encoder: a client of the embedding server that runs the collection's model.
        prune: whether to delete the rows of files under this `root` that no longer exist; other rows are kept.
        batch_size: rows per write.
        progress: True for a bar on stderr, False for none, or a function called with (files done, files in all).
        extensions: of image files, lower case with the dot; "" stands for files without one that start like an image.
        metadata: called with the path of each new or changed file; returns JSON values by field name.
        patience: seconds to go on trying while Milvus does not answer, as while it restarts; each time anew.
        stop: set it, from any thread, to end early: what is in flight is stored, nothing is pruned, and the report so
            far is returned. The next run continues.

    Raises:
        InvalidInput: `root` is no folder, or `prune` is set and it has no images, as an unmounted disk would have none.
        ModelMismatch: the collection was filled with another model.
        EncoderError: the embedding server no longer answers. What was encoded by then is stored.
        MilvusUnavailable: Milvus no longer answers. The next run goes on from what is stored.
        CollectionError: the collection has integer ids or no place for digests, or Milvus refuses a row.
    """
    started = time.monotonic()
    base = Path(root).resolve()
    if not base.is_dir():
        raise InvalidInput(f"{base} is not a folder", "root")
    if not 1 <= batch_size <= _MOST_ROWS:
        raise InvalidInput(f"batch_size is 1 to {_MOST_ROWS:,}, got {batch_size}", "batch_size")
    stop = stop or threading.Event()
    run = _Run(base, collection, encoder, batch_size, extensions, metadata, stop)
    total = sum(1 for _ in until(stop, walk(base, extensions)))
    if prune:
        run.check_prunable()
    with long_work(collection, progress, total, patience, lambda: f"{run.report.encoded:,} files") as bar:
        run.encode_all(until(stop, walk(base, extensions, run.fail, run.leave_out)), bar)
        if prune and not stop.is_set():
            run.prune()
        if run.report.encoded:
            collection.flush()
    run.report.seconds = time.monotonic() - started
    return run.report


def _taken(stored: str) -> InvalidInput:
    return InvalidInput(f"that id belongs to {stored}; ingest this folder into another collection", "id")


@dataclass
class _File:
    """A file to encode; its size and digest are filled in when it is read."""

    id: str
    path: Path
    new: bool
    width: int = 0
    height: int = 0
    digest: str = ""


class _Run:
    """One ingest in progress."""

    def __init__(
        self,
        base: Path,
        collection: FocusedCollection,
        encoder: Encoder,
        batch_size: int,
        extensions: Collection[str],
        metadata: Metadata | None,
        stop: threading.Event,
    ) -> None:
        self.report = IngestReport()
        self._stop = stop
        self._base = base
        self._collection = collection
        self._encoder = encoder
        self._batch_size = batch_size
        self._extensions = extensions
        self._metadata = metadata
        self._new: list[Row] = []
        self._changed: list[Row] = []
        self._at = at = collection.layout
        self._own_fields = [name for name in ("path", "width", "height") if at.dynamic or name in at.others]
        collection.check_writable()
        collection.check_model(encoder.info)
        collection.digests([])
        if at.id_max_length is None:
            raise CollectionError(f"collection {collection.name!r} has integer ids; ingest uses file paths as ids")

    def encode_all(self, names: Iterable[str], bar: ProgressBar) -> None:
        """Stores every file in `names` that is new or changed."""
        pool = ThreadPoolExecutor(THREADS, "phs-ingest")

        def failed(file: _File, error: PhsError) -> None:
            self.fail(file.id, error)
            bar.advance()

        try:
            files = until(self._stop, self._outdated(names, pool, bar))
            for file, encoding in encoded(self._encoder, files, self._load, failed, pool):
                self._take(file, encoding)
                bar.advance()
            self._store()
        except CollectionError:
            raise
        except BaseException:
            # After Ctrl-C or the loss of the embedding server, keep what is encoded.
            with suppress(PhsError):
                self._store()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _outdated(self, names: Iterable[str], pool: ThreadPoolExecutor, bar: ProgressBar) -> Iterator[_File]:
        """The files that are new or changed, found by one lookup for many files."""
        digest_field = str(self._at.digest)
        wanted = [digest_field, *(["path"] if "path" in self._own_fields else [])]
        for chunk in chunks(self._usable(names, bar), _IDS_PER_LOOKUP):
            rows = {row[self._at.id]: row for row in self._collection.get(chunk, wanted)}
            files = [_File(name, self._base / name, name not in rows) for name in chunk]
            moved = []
            # Only files that have a row are read here, and not kept: most of them are unchanged.
            for file, digest in ahead(pool, lambda file: "" if file.new else sha256_of(file.path), files):
                stored = "" if file.new else str(rows[file.id].get("path") or "")
                elsewhere = is_another(stored, file.path)
                changed = not file.new and digest != rows[file.id].get(digest_field)
                if changed and elsewhere:
                    self.fail(file.id, _taken(stored))
                    bar.advance()
                    continue
                if file.new or changed:
                    yield file
                    continue
                self.report.skipped_unchanged += 1
                bar.advance()
                if "path" in wanted and stored != str(file.path) and not elsewhere:
                    moved.append(file.id)
            self._move(moved)

    def _usable(self, names: Iterable[str], bar: ProgressBar) -> Iterator[str]:
        """The names that can be ids; the others are reported as failed."""
        allowed = self._at.id_max_length or 0
        for name in names:
            self.report.found += 1
            try:
                if (size := check_text(name, "id")) > allowed:
                    raise InvalidInput(f"the path has {size} bytes; the collection's ids have at most {allowed}")
            except InvalidInput as error:
                self.fail(name, error)
                bar.advance()
            else:
                yield name

    def _load(self, file: _File) -> EncodedImage | PhsError:
        limit = self._encoder.info.limits.image_bytes
        try:
            with suppress(OSError):  # load_image has the better message
                if (size := file.path.stat().st_size) > limit:
                    raise ImageError(f"{size:,} bytes; the server takes at most {limit:,}")
            image = load_image(file.path)
            file.width, file.height, file.digest = image.width, image.height, image.digest
            return image
        except PhsError as error:
            return error

    def _take(self, file: _File, encoding: Encoding) -> None:
        own = {"path": str(file.path), "width": file.width, "height": file.height}
        metadata = {name: own[name] for name in self._own_fields}
        if self._metadata is not None:
            metadata |= self._metadata(file.path)
        rows = self._new if file.new else self._changed
        rows.append(Row(file.id, encoding.required("embedding"), encoding.required("state"), file.digest, metadata))
        if len(self._new) + len(self._changed) >= self._batch_size:
            self._store()

    def _store(self) -> None:
        # New rows are upserted too: pymilvus resends a batch whose answer was lost, and a server that had stored an
        # insert by then would have its rows twice.
        new, self._new = self._new, []
        changed, self._changed = self._changed, []
        self.report.encoded += self._write(new)
        replaced = self._write(changed)
        self.report.encoded += replaced
        self.report.changed += replaced

    def _write(self, rows: list[Row]) -> int:
        """Writes rows; returns how many."""
        try:
            self._collection.upsert(rows)
            return len(rows)
        except InvalidInput as error:
            # Nothing was stored. Written one by one, only the bad rows fail.
            if len(rows) == 1:
                self.fail(str(rows[0].id), error)
                return 0
            return sum(self._write([row]) for row in rows)

    def _move(self, names: list[str]) -> None:
        """Updates the rows' `path` after the folder was moved, without encoding anything again."""
        at = self._at
        for part in chunks(names, self._batch_size):
            rows = []
            for found in self._collection.get(part, ["*", *at.vectors, at.embedding, str(at.state)]):
                name, digest = found.pop(at.id), found.pop(str(at.digest))
                embedding = np.array(found.pop(at.embedding), dtype=np.float32)
                state = found.pop(str(at.state))
                rows.append(Row(name, embedding, state, digest, found | {"path": str(self._base / name)}))
            self._collection.upsert(rows)

    def check_prunable(self) -> None:
        """Raises InvalidInput if the folder has no images at all, because an unmounted disk looks like that."""
        if "path" not in self._own_fields:
            raise CollectionError(f"collection {self._collection.name!r} has no field 'path', by which rows are pruned")
        if next(walk(self._base, self._extensions), None) is None:
            raise InvalidInput(f"no images under {self._base}, so nothing is pruned: is the disk mounted?", "root")

    def prune(self) -> None:
        """Deletes the rows of files under this root that no longer exist."""
        for page in chunks(self._collection.iterate_ids(), _IDS_PER_LOOKUP):
            gone = [name for name in page if is_gone(self._base / str(name))]
            rows = {row[self._at.id]: row.get("path") for row in self._collection.get(gone, ["path"])}
            names = [name for name, path in rows.items() if path == str(self._base / str(name))]
            if names:
                self.check_prunable()
                self._collection.delete(names)
                self.report.pruned += len(names)

    def leave_out(self, reason: str) -> None:
        """Counts a file that is no image."""
        self.report.left_out[reason] += 1

    def fail(self, name: str, error: Exception) -> None:
        """Reports a file, or a folder, that cannot be used."""
        self.report.failed_count += 1
        if len(self.report.failed) < FAILURES_KEPT:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.report.failed.append((name.encode("utf-8", "backslashreplace").decode(), reason))
