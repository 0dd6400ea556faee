"""Where the pictures of rows are: a folder, a URL template, a field that says it, or a function."""

from __future__ import annotations

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
_TIMEOUT_SECONDS = 10.0


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
    if "://" in str(source):
        template = str(source)
        if urlsplit(template).scheme not in ("http", "https") or _ID not in template:
            raise InvalidInput(f"{shown(template)} must be an http or https URL with {_ID} in it", "images")
        return lambda row_id: _fetched(template, row_id)
    root = Path(source)
    if not root.is_dir():
        raise InvalidInput(f"{shown(root)} is no folder; give one, a URL with {_ID} in it, or a function", "images")
    return lambda row_id: _given(below(root, str(row_id)), row_id)


def _called(function: Callable[[Id], ImageSource | None], row_id: Id) -> ImageSource:
    try:
        return _given(function(row_id), row_id)
    except ImageError:
        raise
    except Exception as error:  # the caller's own, whatever it is: one picture must not end a search
        raise ImageError(f"no picture of row {shown(row_id)!r}: {reason_of(error)}") from error


def _given(image: ImageSource | None, row_id: Id) -> ImageSource:
    if image is None:
        raise ImageError(f"there is no picture of row {shown(row_id)!r}")
    return image


@dataclass(frozen=True)
class RowFinder:
    """Finds the picture of a row by its fields; see `row_finder`.

    Attributes:
        fields: the fields that it needs to see.
        find: from the row's key and those fields to its picture.
    """

    fields: tuple[str, ...]
    find: Callable[[Id, Mapping[str, Any]], ImageSource]

    def __call__(self, row_id: Id, row: Mapping[str, Any]) -> ImageSource:
        """The picture of a row.

        Raises:
            ImageError: there is none; the message names the id.
        """
        return self.find(row_id, row)


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
            raise InvalidInput(f"{shown(root)} is no folder; give one, or a URL with {_ID} in it", "images")
        if image_field is None:
            return RowFinder((), lambda row_id, _: _given(below(root, str(row_id)), row_id))
        field = image_field
        return RowFinder((field,), lambda row_id, row: _given(below(root, _value(row, field, row_id)), row_id))
    if image_field is None:
        raise InvalidInput("say where the pictures are: image_field, images, or both", "images")

    def whole(row_id: Id, row: Mapping[str, Any]) -> ImageSource:
        value = _value(row, image_field, row_id)
        return _fetch(value) if value.startswith(("http://", "https://")) else value

    return RowFinder((image_field,), whole)


def _by_template(template: str) -> RowFinder:
    names = _placeholders(template)
    if urlsplit(template).scheme not in ("http", "https") or not names:
        raise InvalidInput(
            f"{shown(template)} must be an http or https URL with the name of a field in it, such as {_ID}", "images"
        )
    fields = tuple(dict.fromkeys(name for name in names if name != "id"))
    return RowFinder(fields, lambda row_id, row: _fetch(_filled(template, names, row_id, row)))


def _placeholders(template: str) -> list[str]:
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InvalidInput(f"{shown(template)}: {error}", "images") from None
    if not all(name.isidentifier() for name in names):
        raise InvalidInput(f"{shown(template)}: between braces goes the name of a field", "images")
    return names


def _filled(template: str, names: list[str], row_id: Id, row: Mapping[str, Any]) -> str:
    for name in names:
        value = str(row_id) if name == "id" else _value(row, name, row_id)
        template = template.replace(f"{{{name}}}", quote(value, safe="/"))
    return template


def _value(row: Mapping[str, Any], field: str, row_id: Id) -> str:
    value = row.get(field)
    if value is None or value == "":
        raise ImageError(f"row {shown(row_id)!r} has nothing in field {field!r}, which should say where its picture is")
    return str(value)


def _fetched(template: str, row_id: Id) -> bytes:
    return _fetch(template.replace(_ID, quote(str(row_id), safe="/")))


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read(Limits.image_bytes + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ImageError(f"cannot fetch {shown(url)}: {reason_of(error)}") from error
    if len(data) > Limits.image_bytes:
        raise ImageError(f"{shown(url)} is over {Limits.image_bytes} bytes")
    return data
