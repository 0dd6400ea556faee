"""Where the pictures of rows are: a folder, a URL template, a field that says it, or a function."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from string import Formatter
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

from phs_milvus.contract.errors import ImageError, InvalidInput, reason_of, shown
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.types import Limits
from phs_milvus.milvus.rows import Id
from phs_milvus.search.pictures import below

PictureSource: TypeAlias = "str | Path | Callable[[Id], ImageSource | None]"

_ID = "{id}"
_TIMEOUT_SECONDS, _FETCH_SECONDS = 10.0, 30.0
_PART_BYTES = 2**18


class Unreachable(ImageError):
    """A picture could not be fetched because its server was not reached: others of it would not be either."""


@dataclass(frozen=True)
class RowFinder:
    """Finds the picture of a row by its key and fields; see `row_finder`.

    Attributes:
        fields: the fields that it needs to see.
        find: raises ImageError where there is none.
    """

    fields: tuple[str, ...]
    find: Callable[[Id, Mapping[str, Any]], ImageSource]


def finder(source: PictureSource) -> Callable[[Id], ImageSource]:
    """A function from a row's id to its picture.

    Args:
        source: a folder, which holds the picture of each row at its id; a URL with {id} in it, such as
            "https://images.example.com/{id}.jpg"; or a function that returns a path or the bytes, or None where there
            is no picture.

    Returns:
        a function that raises ImageError, which names the id, where a picture is missing.

    Raises:
        InvalidInput: no such folder, or a URL that cannot be used.
    """
    if callable(source):
        return lambda row_id: _called(source, row_id)
    found = row_finder(source, None)
    if found.fields:
        raise InvalidInput(f"{shown(source)}: of a row only {_ID} is known here", "images")
    return lambda row_id: found.find(row_id, {})


def row_finder(images: str | Path | None, image_field: str | None) -> RowFinder:
    """A function from a row to its picture, where a field of the row says where that is.

    Args:
        images: a folder, in which the value of `image_field` is the path; a URL with the names of fields in braces,
            such as "https://images.example.com/{album}/{file}.jpg", where {id} is the primary key; or None: the field
            holds a whole path or an http(s) URL.
        image_field: None: the primary key, in the same role.

    Raises:
        InvalidInput: no such folder, or a URL that cannot be used.
    """
    if images is not None and "://" in str(images):
        return _by_template(str(images))
    if images is not None:
        root = Path(images).expanduser()
        if not root.is_dir():
            raise InvalidInput(
                f"{shown(root)} is no folder; give one, a URL with {_ID} or other fields in it, or a function", "images"
            )
        fields = () if image_field is None else (image_field,)
        return RowFinder(fields, lambda row_id, row: _below(root, _value(row, image_field, row_id), row_id))
    if image_field is None:
        raise InvalidInput(
            "say where the pictures are: image_field, images, or both (--image-field, --images)", "images"
        )

    def whole(row_id: Id, row: Mapping[str, Any]) -> ImageSource:
        value = _value(row, image_field, row_id)
        return _fetch(value) if value.startswith(("http://", "https://")) else value

    return RowFinder((image_field,), whole)


def _below(root: Path, name: str, row_id: Id) -> Path:
    path = below(root, name)
    if path is None:
        raise ImageError(f"row {shown(row_id)!r}: {shown(name)!r} leads out of {shown(root)}")
    return path


def _by_template(template: str) -> RowFinder:
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidInput(f"{shown(template)}: {error}", "images") from None
    names = [name for _, name, _, _ in pieces if name is not None]
    if urlsplit(template).scheme not in ("http", "https") or not names:
        raise InvalidInput(
            f"{shown(template)} must be an http or https URL with the name of a field in it, such as {_ID}", "images"
        )
    if not all(name.isidentifier() for name in names) or any(spec or conversion for _, _, spec, conversion in pieces):
        raise InvalidInput(f"{shown(template)}: between braces goes the name of a field, and nothing else", "images")

    def filled(row_id: Id, row: Mapping[str, Any]) -> str:
        values = {name: _value(row, None if name == "id" else name, row_id) for name in names}
        return "".join(text + ("" if name is None else quote(values[name], safe="/")) for text, name, _, _ in pieces)

    fields = tuple(dict.fromkeys(name for name in names if name != "id"))
    return RowFinder(fields, lambda row_id, row: _fetch(filled(row_id, row)))


def _value(row: Mapping[str, Any], field: str | None, row_id: Id) -> str:
    """The value of a field; None stands for the primary key."""
    if field is None:
        return str(row_id)
    value = row.get(field)
    if value is None or value == "":
        raise ImageError(f"row {shown(row_id)!r} has nothing in field {field!r}, which should say where its picture is")
    return str(value)


def _called(function: Callable[[Id], ImageSource | None], row_id: Id) -> ImageSource:
    try:
        image = function(row_id)
    except ImageError:
        raise
    except Exception as error:  # the caller's own, whatever it is: one picture must not end a search
        raise ImageError(f"no picture of row {shown(row_id)!r}: {reason_of(error)}") from error
    if image is None:
        raise ImageError(f"there is no picture of row {shown(row_id)!r}")
    return image


def _fetch(url: str) -> bytes:
    """The bytes at a URL, within `_TIMEOUT_SECONDS` for each answer of its server and `_FETCH_SECONDS` in all."""
    until = time.monotonic() + _FETCH_SECONDS
    data = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            while part := answer.read1(_PART_BYTES):
                data += part
                if len(data) > Limits.image_bytes:
                    raise ImageError(f"{shown(url)} is over {Limits.image_bytes} bytes")
                if time.monotonic() > until:
                    raise Unreachable(f"cannot fetch {shown(url)}: not all there after {_FETCH_SECONDS:g} s")
    except urllib.error.HTTPError as error:
        raise ImageError(f"cannot fetch {shown(url)}: {reason_of(error)}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise Unreachable(f"cannot fetch {shown(url)}: {reason_of(error)}") from error
    return bytes(data)
