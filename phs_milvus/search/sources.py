"""Where the pictures of hits are: a folder, a URL template, or a function of the id."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TypeAlias
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


def _fetched(template: str, row_id: Id) -> bytes:
    url = template.replace(_ID, quote(str(row_id), safe="/"))
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            data: bytes = answer.read(Limits.image_bytes + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise ImageError(f"cannot fetch {shown(url)}: {reason_of(error)}") from error
    if len(data) > Limits.image_bytes:
        raise ImageError(f"{shown(url)} is over {Limits.image_bytes} bytes")
    return data
