"""What the API answers, as JSON values; blocking, so it is called on threads (phs_milvus.web.api.routes)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import numpy.typing as npt

from phs_milvus.client.pictures import Opened
from phs_milvus.contract.errors import CollectionError, InvalidInput, PhsError, PictureNotHeld, shown
from phs_milvus.contract.images import load_image
from phs_milvus.contract.location import Location
from phs_milvus.contract.types import Encoding, Focus, Limits
from phs_milvus.milvus.collection import MAX_LIMIT
from phs_milvus.milvus.rows import Id, quote
from phs_milvus.pointing.prompts import Prompt
from phs_milvus.search.hits import Hit, SearchResult
from phs_milvus.search.locating import target_of
from phs_milvus.web.api.effort import check_effort
from phs_milvus.web.api.questions import focus_of, prompt_of
from phs_milvus.web.backend import Backend, Ready
from phs_milvus.web.held import HeldPictures
from phs_milvus.web.problems import Problem
from phs_milvus.web.renditions import SIZES, Renditions
from phs_milvus.web.stored import StoredPictures, id_of

VERSION = 1
_UPLOAD_BYTES = 256 * 2**20
_MOST_LISTED = 200
# Longer integers are not taken exactly by every reader of JSON (RFC 8259, section 6). Ids are always texts, because
# Milvus makes up longer ones.
_EXACT = 2**53 - 1


class Service:
    """Answers requests with one backend.

    Args:
        stored: where the rows' pictures are.
        renditions: draws pictures for browsers.
        places: what commands name to reach the same: "milvus", "encoder" or "model", "images".
        login: whether people log in, and may log out.
    """

    def __init__(
        self,
        backend: Backend,
        stored: StoredPictures,
        renditions: Renditions,
        places: Mapping[str, str],
        *,
        login: bool = False,
    ) -> None:
        self._backend, self._stored, self._renditions, self._places = backend, stored, renditions, dict(places)
        self._uploads = HeldPictures(_UPLOAD_BYTES)
        self._login = login

    def info(self) -> dict[str, Any]:
        """The model, the collection and the limits, or what is missing."""
        state = self._backend.state()
        about: dict[str, Any] = {
            "version": VERSION,
            "state": asdict(state),
            "places": self._places,
            "login": self._login,
        }
        if state.name == "ready":
            with self._ready() as ready:
                about |= {"model": self._model(ready), "collection": self._collection(ready)}
                about["limits"] = {**asdict(ready.encoder.info.limits), "hits": MAX_LIMIT, "sizes": SIZES}
        return about

    def rows(self, after: str | None, limit: str) -> dict[str, Any]:
        """Ids of the collection, in ascending order, after one."""
        if limit not in map(str, range(1, _MOST_LISTED + 1)):
            raise InvalidInput(f"must be 1 to {_MOST_LISTED}, got {shown(limit, 20)}", "limit")
        with self._ready() as ready:
            start = None if after is None else id_of(ready.collection, after, "after")
            ids = list(map(str, islice(ready.collection.iterate_ids(after=start), int(limit))))
        return {"ids": ids, "after": ids[-1] if len(ids) == int(limit) else None}

    def row(self, text: str) -> dict[str, Any]:
        """The upright size of a row's picture, and the row's fields."""
        with self._ready() as ready, _missing_is_404("id"):
            row_id = id_of(ready.collection, text)
            picture = self._picture(ready, row_id)
            fields = next(iter(ready.collection.get([row_id])), {})
        return {"id": str(row_id), "width": picture.width, "height": picture.height, "fields": _fields(fields)}

    def hold(self, data: bytes) -> dict[str, Any]:
        """Takes a picture, of which only the header is read here.

        Raises:
            ImageError: it is none, or over the limits.
        """
        source = load_image(data)
        state = self._backend.state()
        limits = self._backend.ready().encoder.info.limits if state.name == "ready" else Limits()
        if len(data) > limits.image_bytes:
            raise Problem(413, f"the picture has {len(data):,} bytes; {limits.image_bytes:,} are taken", "image")
        self._uploads.put(source.digest, Opened(source.data, source.width, source.height))
        return {"picture": source.digest, "width": source.width, "height": source.height}

    def search(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Hits for a body of `phs_milvus.web.api.questions.SEARCH`."""
        with self._ready() as ready:
            picture, prompt, focus = self._question(ready, values)
            layout = ready.collection.layout
            exclude = values["exclude_query"] and ready.collection.has_digests
            expression = values["filter"].strip()
            if exclude and values["original"] and layout.digest is not None:
                own = f"{layout.digest} != {quote(values['original'])}"
                expression = f"({expression}) and {own}" if expression else own
            result = self._searched(
                ready,
                picture,
                prompt,
                limit=values["limit"],
                candidates=values["candidates"],
                filter=expression,
                output_fields=values["fields"],
                score=values["score"] if values["rerank"] else "ann",
                min_score=values["min_score"],
                exclude_query=exclude,
                rerank=values["rerank"],
                localize=values["localize"],
                images=partial(self._stored.image, ready.collection),
                boxes=values["boxes"],
                focus=focus,
            )
        for hit in result:
            if "path" in hit.fields:
                self._stored.seen(hit.id, hit.fields)
        return _found(result)

    def _searched(self, ready: Ready, *question: Any, **options: Any) -> SearchResult:
        try:
            return ready.search.search(*question, **options)
        except CollectionError as error:
            if ready.collection.count():
                raise
            raise Problem(404, str(error), "collection") from None  # nothing is wrong with it

    def explain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What each head attends to, for a body of EXPLAIN."""
        with self._ready() as ready:
            picture, prompt, focus = self._question(ready, values)
            seen = ready.encoder.explain(picture, prompt, focus=focus)
        return {
            "width": seen.width,
            "height": seen.height,
            "region": list(seen.region),
            "grid": list(seen.attention.shape[1:]),
            "mask": _rounded(seen.mask),
            "attention": _rounded(seen.attention),
            "head_scores": _rounded(seen.head_scores),
            "head_weights": _rounded(seen.head_weights),
            "kept": seen.selected_heads,
        }

    def locate(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Where in rows' pictures it is, for a body of LOCATE."""
        with self._ready() as ready:
            picture, prompt, focus = self._question(ready, values)
            ids = [id_of(ready.collection, value, f"ids[{index}]") for index, value in enumerate(values["ids"])]
            target = target_of(ready.encoder, picture, prompt, focus, boxes=values["boxes"])
            images = [partial(self._stored.image, ready.collection, row_id) for row_id in ids]
            found = list(ready.encoder.locate(target, images))
        return {"rows": [{"id": str(row_id), **_location(where)} for row_id, where in zip(ids, found, strict=True)]}

    def upload_key(self, digest: str) -> str:
        """The ETag of a picture that was sent; raises Problem 404 where it is not held."""
        return self._held(digest).digest

    def draw_upload(self, digest: str, size: int) -> bytes:
        """A JPEG of a picture that was sent."""
        picture = self._held(digest)
        return self._renditions.draw(digest, size, lambda: picture.data)

    def row_key(self, text: str) -> tuple[Id, str]:
        """A row's id, and what changes when its picture does; raises Problem 404 where there is none."""
        with self._ready() as ready, _missing_is_404("id"):
            row_id = id_of(ready.collection, text)
            return row_id, self._stored.place(ready.collection, row_id).key

    def draw_row(self, row_id: Id, size: int) -> bytes:
        """A JPEG of a row's picture."""
        with self._ready() as ready, _missing_is_404("id"):
            place = self._stored.place(ready.collection, row_id)
            return self._renditions.draw(
                place.key, size, lambda: self._stored.read(ready.collection, row_id, place).data
            )

    @contextmanager
    def _ready(self) -> Iterator[Ready]:
        """What there is to work with, which is told of what went wrong with it."""
        ready = self._backend.ready()
        try:
            yield ready
        except PhsError as error:
            self._backend.failed(error)
            raise

    def _question(self, ready: Ready, values: Mapping[str, Any]) -> tuple[Opened, Prompt | None, Focus]:
        if (values["picture"] is None) == (values["id"] is None):
            raise InvalidInput("give either picture, the digest of one that was sent, or id, of a row", "picture")
        focus, prompt = focus_of(values), prompt_of(values["prompt"])
        if values["picture"] is not None:
            picture = self._held(values["picture"])
        else:
            row_id = id_of(ready.collection, values["id"])
            with _missing_is_404("id"):
                picture = self._picture(ready, row_id)
        check_effort(prompt, picture.width, picture.height)
        return picture, prompt, focus

    def _picture(self, ready: Ready, row_id: Id) -> Opened:
        return self._stored.read(ready.collection, row_id, self._stored.place(ready.collection, row_id))

    def _held(self, digest: str) -> Opened:
        with _missing_is_404("picture"):
            return self._uploads.get(digest)

    def _model(self, ready: Ready) -> dict[str, Any]:
        about = asdict(ready.encoder.info)
        del about["limits"]
        return about

    def _collection(self, ready: Ready) -> dict[str, Any]:
        layout = ready.collection.layout
        return {
            "name": ready.collection.name,
            "rows": ready.collection.count(),
            "fields": [layout.id, *([layout.digest] if layout.digest else []), *layout.others],
            "dynamic": layout.dynamic,
            "digests": ready.collection.has_digests,
            "lite": ready.lite,
        }


@contextmanager
def _missing_is_404(field: str) -> Iterator[None]:
    try:
        yield
    except PictureNotHeld as error:
        raise Problem(404, str(error), field) from None


def _found(result: SearchResult) -> dict[str, Any]:
    return {
        "query": _query(result.query),
        "hits": [{"rank": rank, **_hit(hit)} for rank, hit in enumerate(result, 1)],
        "milliseconds": {
            "encode": round(result.encode_ms, 1),
            "milvus": round(result.ann_ms, 1),
            "rerank": round(result.rerank_ms, 1),
            "locate": round(result.locate_ms, 1),
        },
    }


def _query(query: Encoding) -> dict[str, Any]:
    return {
        "width": query.width,
        "height": query.height,
        "head_scores": _rounded(query.head_scores),
        "head_weights": _rounded(query.head_weights),
    }


def _hit(hit: Hit) -> dict[str, Any]:
    scores = {
        name: None if getattr(hit, name) is None else round(getattr(hit, name), 6)
        for name in ("score", "ann_score", "query_db_score", "blend_score", "localized_score")
    }
    ranks = {"ann_rank": hit.ann_rank, "query_db_rank": hit.query_db_rank}
    where = {} if hit.location is None else _location(hit.location)
    if hit.location_error is not None:
        where = {"error": hit.location_error}
    return {"id": str(hit.id), **scores, **ranks, **where, "fields": _fields(hit.fields)}


def _location(found: Location | PhsError) -> dict[str, Any]:
    if isinstance(found, PhsError):
        return {"error": shown(found)}
    return {
        "width": found.width,
        "height": found.height,
        "boxes": [{"box": list(box.region), "score": round(box.score, 4)} for box in found.boxes],
        "peak": [round(edge, 1) for edge in found.peak],
    }


def _fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    """A field's value as JSON has it: arrays of Milvus are no lists, and vectors are numpy's."""
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # as pymilvus writes it into dynamic fields; JSON has no word for it
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    try:
        return [_plain(each) for each in value]
    except TypeError:
        return str(value)


def _rounded(array: npt.NDArray[Any] | None) -> Any:
    """Five decimals: the document is half as long, and no picture of it looks different."""
    return None if array is None else array.astype(float).round(5).tolist()
