"""From a file's name as an annotation tool wrote it to the file that is there."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from phs_milvus.evaluation.datasets.text import is_file
from phs_milvus.ingest.files import IMAGE_EXTENSIONS

# Endings of image files. Ingest takes files without one too, which among annotations would be anything.
PICTURES = IMAGE_EXTENSIONS - {""}
_DRIVE = re.compile(r"^[A-Za-z]:/+")
_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Label Studio puts eight hexadecimal digits before the names of uploads.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")

# Names by which the fullest folder is told.
_SAMPLE = 200


class Finder:
    """Looks for image files in some folders, in the one that holds most of them first: downloads are often partial."""

    def __init__(self, places: Sequence[Path], names: Sequence[str]) -> None:
        sample = names[:: max(1, len(names) // _SAMPLE)]
        held = {place: sum(any(is_file(place / n) for n in spellings(name)) for name in sample) for place in places}
        self._places = sorted(held, key=lambda place: -held[place])
        self._listing = cache(_listing)

    def find(self, names: Sequence[str]) -> tuple[Path, bool] | None:
        """The file that the first of the names leads to, and whether folders in that name were ignored to find it."""
        for name in names:
            for spelling, place in product(spellings(name), self._places):
                if is_file(place / spelling):
                    return place / spelling, False
            whole = len(PurePosixPath(normal(name)).parts)
            for tail, place in product(tails(name), self._places):
                if file := self._there(place, tail):
                    return file, len(tail.parts) < whole
        return None

    def expected(self, names: Sequence[str]) -> Path:
        """Where the file was looked for first."""
        return self._places[0] / spellings(names[0])[0]

    def _there(self, place: Path, tail: PurePosixPath) -> Path | None:
        """The file, one whose name differs by case, or an image of that stem where the name has no extension."""
        if is_file(place / tail):
            return place / tail
        by_name, name = self._listing(place / tail.parent), _folded(tail.name)
        found = by_name.get(name) or by_name.get(f"{name}.*")
        return found if found and is_file(found) else None


def spellings(name: str) -> list[str]:
    """A name as a path of this system: Windows separators, drives, URLs and percent signs undone; never empty."""
    text = name.strip()
    if _URL.match(text) or "?d=" in text:
        parts = urlsplit(text)
        text = unquote(parse_qs(parts.query).get("d", [parts.path])[0])
        text = text if parts.scheme == "file" else text.lstrip("/")
    forms = [text, _DRIVE.sub("", text.replace("\\", "/")), unquote(text)]
    return list(dict.fromkeys(os.path.normpath(form) if form else "." for form in forms))


def tails(name: str) -> Iterator[PurePosixPath]:
    """The path with its leading folders taken off one by one, the bare name last, also without an upload's prefix."""
    for spelling in reversed(spellings(name)):
        parts = [part for part in PurePosixPath(spelling).parts if part not in ("/", "..", ".")]
        for start in range(len(parts)):
            yield PurePosixPath(*parts[start:])
        if parts and (bare := _UPLOAD.sub("", parts[-1])) != parts[-1]:
            yield PurePosixPath(bare)


def normal(name: str) -> str:
    """A name without its spelling's accidents, for comparing and as an image's id."""
    return _DRIVE.sub("", spellings(name)[0].replace("\\", "/"))


def _listing(folder: Path) -> dict[str, Path]:
    """A folder's files by folded name, and its images by "stem.*" where one has that stem."""
    try:
        files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for file in files:
        found.setdefault(_folded(file.name), file)
        if file.suffix.lower() in PICTURES:
            found.setdefault(f"{_folded(file.stem)}.*", file)
    return found


def _folded(name: str) -> str:
    """Without case, and with accents as one character: zips made on a Mac hold them as two."""
    return unicodedata.normalize("NFC", name).casefold()
