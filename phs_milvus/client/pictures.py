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

from phs_milvus.client.balance import ELSEWHERE, Balance
from phs_milvus.contract.errors import PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage, ImageSource

# Seconds that one server is given at least, if the call has them.
_SHORTEST_ATTEMPT = 2.0

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


class Attempts:
    """The attempts to get one call answered.

    Attributes:
        server: the address to send to now; None: whichever gRPC chooses, with its retries, which is the last attempt.

    Args:
        servers: the addresses of the client in the order in which to try them; none where it has only one.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        self._left: list[str | None] = [*servers, None]
        self.server: str | None = None
        self._next()

    def share(self, left: float) -> float:
        """The seconds for this attempt, of those left for the call: one server that hangs must not take all."""
        return left if not self._left else max(left / 2, min(left, _SHORTEST_ATTEMPT))

    def failed(self, error: PhsError) -> None:
        """Goes on to the next attempt.

        Raises:
            `error`: there is none, or another one would fail as well.
        """
        if not (isinstance(error, ELSEWHERE) and self._left):
            raise error
        self._next()

    def _next(self) -> None:
        self.server = self._left.pop(0)


class Delivery(Attempts):
    """The attempts to get one image's prompts answered: to which server, and with the image's bytes or its digest.

    With several servers a picture that was opened goes to the one that its digest chooses, which will have it the next
    time too, and spills over to the next one where that is loaded or away. Any other goes where the least is to do.

    Attributes:
        by_digest: whether that server has the image, as far as this client knows.

    Args:
        servers: the addresses of the client; none where it has only one.
    """

    def __init__(self, image: EncodedImage, servers: Sequence[str], balance: Balance) -> None:
        opened = isinstance(image, Opened)
        self._sent: set[str | None] = image.sent if isinstance(image, Opened) else set()
        self.by_digest = False
        super().__init__(balance.order(ranked(image.digest, servers) if opened else ()))

    def delivered(self) -> None:
        """The server has the image now."""
        self._sent.add(self.server)

    def failed(self, error: PhsError) -> None:
        if isinstance(error, PictureNotHeld) and self.by_digest:
            self._sent.discard(self.server)
            self.by_digest = False
        else:
            super().failed(error)

    def _next(self) -> None:
        super()._next()
        self.by_digest = self.server in self._sent


def ranked(digest: str, servers: Sequence[str]) -> list[str]:
    """Servers in the order in which a picture belongs to them: rendezvous hashing, by which only the pictures of a
    server that comes or goes change places (Thaler and Ravishankar, 1998)."""
    return sorted(servers, key=lambda server: hashlib.sha256(f"{digest} {server}".encode()).digest())
