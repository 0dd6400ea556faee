"""Pictures that are pointed at again and again: their prompts travel without their bytes.

    picture = encoder.open("street.jpg")
    picture.encode(Box(40, 60, 180, 220))           # sends the bytes; the server remembers the picture for a while
    picture.encode(Box(300, 60, 380, 200))          # milliseconds

A server that no longer remembers a picture says so, and gets the bytes again, unseen by the caller.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import EncoderBusy, EncoderUnavailable, PhsError, PictureNotHeld
from phs_milvus.contract.images import EncodedImage
from phs_milvus.contract.types import Encoding, Explanation, Focus
from phs_milvus.pointing.prompts import Prompt


@dataclass(frozen=True, eq=False)
class Opened(EncodedImage):
    """An image that a client keeps at hand. Anything that takes an image takes it too.

    Attributes:
        sent: the servers that have its bytes, as far as this client knows; None stands for a client's only address.
    """

    sent: set[str | None] = field(default_factory=set, repr=False)


@dataclass(frozen=True, eq=False)
class Picture(Opened):
    """An image opened by `Encoder.open`, in the manner of segment-anything's set_image and predict.

    Attributes:
        width, height: pixels of the upright image (EXIF orientation applied), the frame of every prompt.
        encoder: the Encoder that opened it.
    """

    encoder: Any = field(default=None, repr=False)

    def encode(
        self,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> Encoding:
        """Encodes the picture; takes and raises what `Encoder.encode` does."""
        encoding: Encoding = self.encoder.encode(self, prompt, focus=focus, outputs=outputs, timeout=timeout)
        return encoding

    def encode_prompts(
        self,
        prompts: Sequence[Prompt | None],
        *,
        focus: Focus | Sequence[Focus] = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> list[Encoding]:
        """Encodes the picture under several prompts; takes and raises what `Encoder.encode_prompts` does."""
        encodings: list[Encoding] = self.encoder.encode_prompts(
            self, prompts, focus=focus, outputs=outputs, timeout=timeout
        )
        return encodings

    def explain(
        self, prompt: Prompt | None = None, *, focus: Focus = Focus.paper(), timeout: float | None = None
    ) -> Explanation:
        """Shows what each head looks at; takes and raises what `Encoder.explain` does."""
        explanation: Explanation = self.encoder.explain(self, prompt, focus=focus, timeout=timeout)
        return explanation


@dataclass(frozen=True, eq=False)
class AsyncPicture(Opened):
    """`Picture` for asyncio, opened by `AsyncEncoder.open`."""

    encoder: Any = field(default=None, repr=False)

    async def encode(
        self,
        prompt: Prompt | None = None,
        *,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> Encoding:
        """See `Picture.encode`."""
        encoding: Encoding = await self.encoder.encode(self, prompt, focus=focus, outputs=outputs, timeout=timeout)
        return encoding

    async def encode_prompts(
        self,
        prompts: Sequence[Prompt | None],
        *,
        focus: Focus | Sequence[Focus] = Focus(),
        outputs: Outputs = Outputs(),
        timeout: float | None = None,
    ) -> list[Encoding]:
        """See `Picture.encode_prompts`."""
        encodings: list[Encoding] = await self.encoder.encode_prompts(
            self, prompts, focus=focus, outputs=outputs, timeout=timeout
        )
        return encodings

    async def explain(
        self, prompt: Prompt | None = None, *, focus: Focus = Focus.paper(), timeout: float | None = None
    ) -> Explanation:
        """See `Picture.explain`."""
        explanation: Explanation = await self.encoder.explain(self, prompt, focus=focus, timeout=timeout)
        return explanation


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
