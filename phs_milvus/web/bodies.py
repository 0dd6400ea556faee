"""Reading a request's body, within limits, before anything is made of it."""

from __future__ import annotations

from starlette.requests import Request

from phs_milvus.web.places import Place
from phs_milvus.web.problems import Problem


async def read_body(request: Request, most: int | None = None) -> bytes:
    """The body of a request.

    It counts for its caller until the request is answered. One that does not arrive is ended by the connection
    (phs_milvus.web.serving).

    Args:
        most: bytes that it may have; None: as the server's settings say.

    Raises:
        Problem: 413 it is larger; 415 it is compressed: nothing is inflated; 429 or 503 there is no room for it.
    """
    place: Place = request.scope["phs.place"]
    most = place.places.body_bytes if most is None else min(most, place.places.body_bytes)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "compressed bodies are not taken; send it as it is", "content-encoding")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        place.take(len(part))
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> Problem:
    return Problem(413, f"over {most:,} bytes; send less, or raise --max-body-bytes", "body")
