"""Annotation files as text, in the encodings in which tools write them."""

from __future__ import annotations

import codecs
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from phs_milvus.evaluation.datasets.model import AnnotationError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it starts with
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
_DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
# What Windows calls by these names holds more characters than the standards of these names.
_LARGER = {"gbk": "gb18030", "gb2312": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "big5": "cp950"}


@lru_cache(maxsize=1)
def read_json(file: Path) -> Any:
    """The value in a JSON file; the last one is kept, for a format is told by its contents and then read.

    Raises:
        AnnotationError: unreadable, or not JSON.
    """
    try:
        return json.loads(_decoded(file.read_bytes(), "utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(file, "", "file", f"is not readable JSON: {error}") from error


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file. Its text is decoded here, since expat knows no multi-byte encodings but Unicode's.

    Raises:
        AnnotationError: unreadable, not XML, or with entity declarations, which could expand to gigabytes.
    """
    try:
        data = file.read_bytes()
        declared = _DECLARATION.match(data)
        text = _decoded(data, *([declared[1].decode().lower()] if declared else []), "utf-8")
        if "<!ENTITY" in text:
            raise AnnotationError(file, "", "file", "declares XML entities")
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(file, "", "file", f"is not XML: {error}") from error


def read_lines(file: Path) -> list[str]:
    """The lines of a text file. Bytes that are not UTF-8 become lone surrogates, so that only their line is wrong.

    Raises:
        AnnotationError: unreadable.
    """
    try:
        data = file.read_bytes()
        for mark, encoding in _BOMS[:4]:
            if data.startswith(mark):
                return data.decode(encoding, "surrogateescape").splitlines()
        return data.decode("utf-8", "surrogateescape").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(file, "", "file", f"cannot be read: {error}") from error


def check_utf8(text: str, file: Path, where: str) -> None:
    """AnnotationError for a line of `read_lines` that was not UTF-8."""
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise AnnotationError(file, where, "line", "is not UTF-8; save the file in that encoding")


def is_file(path: Path) -> bool:
    """False too for what can be no path: with a null character, or too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """As `is_file`, for folders."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def visible(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted, without hidden ones: zips made on a Mac hold a ._a.xml beside a.xml."""
    return sorted(
        file
        for file in folder.rglob(pattern)
        if not any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts)
    )


def _decoded(data: bytes, *encodings: str) -> str:
    """Text by its byte order mark, else in the first of the encodings that fits.

    Raises:
        ValueError: none fits.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding)
    for encoding in encodings:
        try:
            return data.decode(_LARGER.get(encoding, encoding))
        except (LookupError, UnicodeDecodeError):
            continue
    raise ValueError(f"its text is not {' or '.join(encodings)}")
