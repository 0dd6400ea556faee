"""The pictures of a collection's rows: only of ids that are there, and never from outside the folder of pictures."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phs_milvus.client.pictures import Opened
from phs_milvus.contract.errors import ImageError, InvalidInput, PictureNotHeld, reason_of, shown
from phs_milvus.contract.images import ImageSource, load_image
from phs_milvus.contract.types import Limits
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.rows import Id
from phs_milvus.search.pictures import below
from phs_milvus.search.queries import pictures_of
from phs_milvus.search.sources import finder
from phs_milvus.web.held import HeldPictures

_HELD_BYTES = 64 * 2**20
# A row may be deleted, and a fetched picture may change: looked at again after so many seconds.
_ROW_SECONDS, _URL_SECONDS = 60.0, 600.0
_MOST_ROWS = 50_000
# int() takes other digits than these, and Milvus no longer ones.
_WHOLE, _LARGEST = re.compile("-?[0-9]{1,19}"), 2**63 - 1


@dataclass(frozen=True)
class Place:
    """Where a row's picture is.

    Attributes:
        path: a file; None where it is fetched.
        key: changes when the picture does.
    """

    path: Path | None
    key: str


class StoredPictures:
    """Finds rows' pictures; thread-safe.

    Args:
        images: a folder, which holds each row's picture at its id; a URL with {id} in it; None: each row's field
            "path", which `ingest` writes, says where its file is, or what was said of pictures when the collection was
            attached.

    Raises:
        InvalidInput: no such folder, or a URL that cannot be used.
    """

    def __init__(self, images: str | None) -> None:
        self._fetch = finder(images) if images and "://" in images else None
        self._root: Path | None = None
        if images and self._fetch is None:
            finder(images)  # says what is wrong with it
            self._root = Path(images).resolve()
        self._rows: OrderedDict[Id, tuple[float, str | None]] = OrderedDict()
        self._held = HeldPictures(_HELD_BYTES)
        self._lock = threading.Lock()

    def seen(self, row_id: Id, fields: dict[str, Any]) -> None:
        """Remembers for a while that there is such a row, and where its fields say its file is."""
        path = fields.get("path")
        with self._lock:
            self._rows[row_id] = (time.monotonic() + _ROW_SECONDS, path if isinstance(path, str) else None)
            self._rows.move_to_end(row_id)
            if len(self._rows) > _MOST_ROWS:
                self._rows.popitem(last=False)

    def place(self, collection: FocusedCollection, row_id: Id) -> Place:
        """Where a row's picture is.

        Raises:
            PictureNotHeld: there is no such row, or no picture of it.
            ImageError: its file is too large.
            CollectionError: Milvus does not answer.
        """
        path = self._row(collection, row_id)
        if self._fetch is not None or self._says_elsewhere(collection):
            return Place(None, f"{row_id}@{time.time() // _URL_SECONDS:.0f}")
        file = self._file(row_id, path)
        try:
            about = file.stat()
        except (OSError, ValueError) as error:
            raise PictureNotHeld(f"the picture of row {shown(row_id)!r} cannot be read: {reason_of(error)}") from None
        if about.st_size > Limits.image_bytes:
            raise ImageError(f"the picture of row {shown(row_id)!r} is over {Limits.image_bytes:,} bytes")
        return Place(file, f"{file}@{about.st_mtime_ns:x}-{about.st_size:x}")

    def read(self, collection: FocusedCollection, row_id: Id, place: Place) -> Opened:
        """A row's picture, of which only the header has been looked at.

        Raises:
            ImageError: it cannot be read, or is no picture.
        """
        with suppress(PictureNotHeld):
            return self._held.get(place.key)
        source = load_image(place.path if place.path is not None else self._fetched(collection, row_id))
        picture = Opened(source.data, source.width, source.height)
        self._held.put(place.key, picture)
        return picture

    def image(self, collection: FocusedCollection, row_id: Id) -> Opened:
        """`place` and `read`, for locating: raises ImageError where there is no picture."""
        try:
            return self.read(collection, row_id, self.place(collection, row_id))
        except PictureNotHeld as error:
            raise ImageError(str(error)) from None

    def _row(self, collection: FocusedCollection, row_id: Id) -> str | None:
        """The "path" of a row that is there."""
        with self._lock:
            until, path = self._rows.get(row_id, (0.0, None))
        if time.monotonic() < until:
            return path
        layout = collection.layout
        has_path = layout.dynamic or "path" in layout.others
        rows = collection.get([row_id], ["path"] if has_path else [])
        if not rows:
            raise PictureNotHeld(f"there is no row {shown(row_id)!r} in collection {collection.name!r}")
        self.seen(row_id, rows[0])
        found = rows[0].get("path")
        return found if isinstance(found, str) else None

    def _file(self, row_id: Id, path: str | None) -> Path:
        if self._root is None:
            if not path:
                raise PictureNotHeld(
                    f"row {shown(row_id)!r} does not say where its picture is; start phs-milvus web with --images"
                )
            return Path(path)
        file = below(self._root, str(row_id))
        # Links lead nowhere else either: `below` looks at names only.
        if file is None or "\0" in str(file) or not Path(os.path.realpath(file)).is_relative_to(self._root):
            raise PictureNotHeld(f"the picture of row {shown(row_id)!r} is not below the folder of pictures")
        return file

    def _says_elsewhere(self, collection: FocusedCollection) -> bool:
        """Whether pictures are where the collection's attachment says."""
        where = None if self._root or collection.side is None else collection.side.attachment
        return where is not None and bool(where.image_field or where.images)

    def _fetched(self, collection: FocusedCollection, row_id: Id) -> ImageSource:
        find = self._fetch or pictures_of(collection, [row_id], None)
        if (found := find(row_id)) is None:
            raise ImageError(f"there is no picture of row {shown(row_id)!r}")
        return found


def id_of(collection: FocusedCollection, value: object, field: str = "id") -> Id:
    """A row's id as the collection has it: a text, or a whole number, which a URL carries as text.

    Raises:
        InvalidInput: of another type.
    """
    numbers = collection.layout.id_max_length is None
    if numbers and _WHOLE.fullmatch(str(value)) and abs(whole := int(str(value))) <= _LARGEST:
        return whole
    if numbers or not isinstance(value, str) or not value:
        kind = "a whole number" if numbers else "a text"
        raise InvalidInput(f"an id of this collection is {kind}, got {shown(value)!r}", field)
    return value
