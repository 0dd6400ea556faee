"""Pictures that are pointed at again and again: their prompts travel without their bytes.

    picture = encoder.open("street.jpg")
    picture.encode(Box(40, 60, 180, 220))           # sends the bytes; the server remembers the picture for a while
    picture.encode(Box(300, 60, 380, 200))          # milliseconds

A server that no longer remembers a picture says so, and gets the bytes again, unseen by the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from phs_milvus.contract.errors import EncoderBusy, EncoderUnavailable, PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage, ImageSource

Client = TypeVar("Client")
P = ParamSpec("P")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Opened(EncodedImage):
    """An image that a client keeps at hand. Anything that takes an image takes it too.

    Attributes:
        sent: the servers that have its bytes, as far as this client knows; None stands for a client's only address.
    """

    sent: set[str | None] = field(default_factory=set, repr=False)


def on_pictures(method: Callable[Concatenate[Client, ImageSource, P], Result]) -> Callable[Concatenate[Any, P], Result]:
    """A client's method, of which the first argument is an image, as a method of the pictures that it opened."""

    @wraps(method)
    def call(picture: Any, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return method(picture.encoder, picture, *args, **kwargs)

    return call


class Delivery:
    """The attempts to get one image's prompts answered: to which server, and with the image's bytes or its digest.

    With several servers a picture goes to the one that its digest chooses, which will have it the next time too, and
    spills over to the next one where that is loaded or away.

    Attributes:
        server: the address to send to now; None: whichever gRPC chooses.
        by_digest: whether that server has the image, as far as this client knows.

    Args:
        servers: the addresses of the client; none where it has only one.
    """

    def __init__(self, image: EncodedImage, servers: Sequence[str]) -> None:
        self._sent: set[str | None] = image.sent if isinstance(image, Opened) else set()
        chosen = ranked(image.digest, servers) if isinstance(image, Opened) else []
        # In the end to any server, as gRPC finds it, with its retries.
        self._left: list[str | None] = [*chosen, None]
        self.server: str | None = None
        self.by_digest = False
        self._next()

    def delivered(self) -> None:
        """The server has the image now."""
        self._sent.add(self.server)

    def failed(self, error: PhsError) -> None:
        """Goes on to the next attempt.

        Raises:
            `error`: there is none, or another one would fail as well.
        """
        if isinstance(error, PictureNotHeld) and self.by_digest:
            self._sent.discard(self.server)
            self.by_digest = False
        elif isinstance(error, EncoderBusy | EncoderUnavailable) and self._left:
            self._next()
        else:
            raise error

    def _next(self) -> None:
        self.server = self._left.pop(0)
        self.by_digest = self.server in self._sent


def ranked(digest: str, servers: Sequence[str]) -> list[str]:
    """Servers in the order in which a picture belongs to them: rendezvous hashing, by which only the pictures of a
    server that comes or goes change places (Thaler and Ravishankar, 1998)."""
    return sorted(servers, key=lambda server: hashlib.sha256(f"{digest} {server}".encode()).digest())
