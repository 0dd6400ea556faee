"""What can be searched for: a picture with a prompt, a row's own picture, or several examples of one thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from phs_milvus.contract.errors import ImageError, InvalidInput, shown
from phs_milvus.contract.images import ImageSource, load_image
from phs_milvus.contract.types import Encoding
from phs_milvus.milvus.rows import Id
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.pictures import below
from phs_milvus.search.sources import RowFinder, row_finder

if TYPE_CHECKING:
    from phs_milvus.milvus.collection import FocusedCollection


@dataclass(frozen=True)
class StoredImage:
    """A query image that is a row of the collection, given by its id; this machine must be able to read its file."""

    id: Id


@dataclass(frozen=True)
class Query:
    """An image, and the prompt that says what to look for in it."""

    image: ImageSource | StoredImage
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Examples:
    """Several examples of one thing, and of what it is not: "like these, not those".

    Attributes:
        like: at least one. A candidate's score is the mean of its scores against each of them.
        unlike: their mean score is taken off, with the weight `phs_milvus.search.parts.UNLIKE_WEIGHT`.

    Raises:
        InvalidInput: there is nothing in `like`, or an example is something else.
    """

    like: Sequence[Query | Encoding]
    unlike: Sequence[Query | Encoding] = ()

    def __post_init__(self) -> None:
        if not self.like:
            raise InvalidInput("there must be at least one example of what to look for", "like")
        for example in (*self.like, *self.unlike):
            if not isinstance(example, Query | Encoding):
                raise InvalidInput(f"an example is a Query or an Encoding, got {type(example).__name__}", "like")


Question: TypeAlias = Query | Encoding | Examples


def examples_of(question: Question) -> list[Query | Encoding]:
    """Everything that must be encoded to answer a question, in the order like, unlike.

    Raises:
        InvalidInput: it is no question.
    """
    if isinstance(question, Examples):
        return [*question.like, *question.unlike]
    if not isinstance(question, Query | Encoding):
        raise InvalidInput(f"a query is a Query, Examples or an Encoding, got {type(question).__name__}", "queries")
    return [question]


def place_of(number: int, questions: Sequence[Question]) -> str:
    """Where the example of this number is, over all questions, for messages: "query 2, unlike 0"; "" for a lone one."""
    for position, question in enumerate(questions):
        count = len(examples_of(question))
        if number < count:
            query = f"query {position}" if len(questions) > 1 else ""
            if not isinstance(question, Examples) or count == 1:
                return query
            likes = len(question.like)
            example = f"like {number}" if number < likes else f"unlike {number - likes}"
            return f"{query}, {example}" if query else example
        number -= count
    raise IndexError(number)


class Pointed(NamedTuple):
    """A Query whose picture is at hand: no StoredImage any more."""

    image: ImageSource
    prompt: Prompt | None


def digest_of(example: Pointed | Encoding) -> str:
    """sha256 of the bytes of a query's picture, in hex.

    Raises:
        ImageError: the picture cannot be read.
        InvalidInput: an Encoding, which does not say what picture it is of.
    """
    if isinstance(example, Encoding):
        raise InvalidInput("a query that is encoded already does not say what picture it is of", "exclude_query")
    return load_image(example.image).digest


def with_files(
    collection: FocusedCollection,
    examples: Sequence[Query | Encoding],
    image_root: Path | None,
    *,
    consistency_level: str | None = None,
    timeout: float | None = None,
) -> list[Pointed | Encoding]:
    """The examples with every StoredImage replaced by its file, with one lookup in the collection.

    Args:
        image_root: the folder of the files, as image_root / id; None: each row's "path" field says where its file is.
        consistency_level, timeout: see `FocusedCollection.get`; a search's own, since it sees no newer rows itself.

    Raises:
        InvalidInput: there is no such row, its id leads out of `image_root`, or it has no path and there is no
            `image_root`.
    """
    stored = [one.image.id for one in examples if isinstance(one, Query) and isinstance(one.image, StoredImage)]
    find = _finder(collection, stored, image_root, consistency_level, timeout)

    def located(query: Query) -> Pointed:
        image = query.image
        return Pointed(find(image.id) if isinstance(image, StoredImage) else image, query.prompt)

    return [located(one) if isinstance(one, Query) else one for one in examples]


def pictures_of(
    collection: FocusedCollection, ids: Sequence[Id], image_root: Path | None
) -> Callable[[Id], ImageSource | None]:
    """A function from each of these ids to its row's picture, with one lookup; None where `with_files` would say that
    there is none."""
    find = _finder(collection, ids, image_root)

    def known(row_id: Id) -> ImageSource | None:
        try:
            return find(row_id)
        except ImageError:  # which says why
            raise
        except InvalidInput:
            return None

    return known


def _finder(
    collection: FocusedCollection,
    ids: Sequence[Id],
    image_root: Path | None,
    level: str | None = None,
    timeout: float | None = None,
) -> Callable[[Id], ImageSource]:
    """Looks the rows up, and returns a function from an id to the picture, which raises InvalidInput without one."""
    if not ids:
        return lambda row_id: _missing(row_id, collection.name)
    layout = collection.layout
    found = _remembered(collection, image_root)
    if found is not None:
        fields: Sequence[str] = found.fields
    else:
        fields = ["path"] if image_root is None and (layout.dynamic or "path" in layout.others) else []
    # The rows are looked up under image_root too, so that an invented id is an error there as well.
    known = collection.get(list(dict.fromkeys(ids)), fields, consistency_level=level, timeout=timeout)
    rows = {row[layout.id]: row for row in known}

    def find(row_id: Id) -> ImageSource:
        if row_id not in rows:
            _missing(row_id, collection.name)
        return found.find(row_id, rows[row_id]) if found else _file_of(row_id, rows[row_id], image_root)

    return find


def _missing(row_id: Id, collection: str) -> NoReturn:
    raise InvalidInput(f"no row with id {shown(row_id)!r} in collection '{collection}'", "image")


def _remembered(collection: FocusedCollection, image_root: Path | None) -> RowFinder | None:
    """Where an attached collection's pictures are, as its side collection remembers it, or below `image_root` by the
    same field; None where it does not."""
    where = collection.side.attachment if collection.side is not None else None
    if where is None or not (where.image_field or (where.images and image_root is None)):
        return None
    try:
        return row_finder(where.images if image_root is None else image_root, where.image_field)
    except InvalidInput as error:
        # What was said on another machine, perhaps: no reason not to search, only not to find pictures.
        reason = f"{error}; pass image_root to FocusedSearch, or images"
        return RowFinder((), lambda row_id, _: _no_picture(row_id, reason))


def _no_picture(row_id: Id, reason: str) -> NoReturn:
    raise ImageError(f"no picture of row {shown(row_id)!r}: {reason}")


def _file_of(row_id: Id, row: Mapping[str, Any], image_root: Path | None) -> ImageSource:
    if image_root is not None:
        if (file := below(image_root, str(row_id))) is None:
            raise InvalidInput(f"row {shown(row_id)!r} leads out of image_root, {image_root}", "image")
        return file
    path: str | None = row.get("path")
    if not path:
        raise InvalidInput(
            f"row {shown(row_id)!r} does not say where its file is; pass image_root to FocusedSearch", "image"
        )
    return path
