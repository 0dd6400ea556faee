"""Pictures that keep coming, for hours, and (key, result) pairs that keep going out.

    with Journal("feed.done") as done, BulkSession(encoder, pictures(), done=done) as session:
        for key, result in session:                 # as they are finished
            store(key, result)
            done.add(key)                           # after a crash, the same lines go on where it was

where `pictures()` yields (key, image) or (key, image, prompt), and may wait as long as it likes for the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import aclosing
from typing import Any, Generic, TypeAlias, TypeVar

from phs_milvus.client.aio import AsyncEncoder
from phs_milvus.client.bulk import Window
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.feeds import EncodeFeed, Keyed, LazyImage
from phs_milvus.client.readers import TaskReader, ThreadReader
from phs_milvus.client.requests import DEFAULT_IN_FLIGHT, Aim, Outputs
from phs_milvus.contract.errors import ImageError, InvalidInput, ModelMismatch, PhsError, reason_of, shown
from phs_milvus.contract.images import EncodedImage, load_image
from phs_milvus.contract.types import Encoding, Focus
from phs_milvus.pointing.prompts import Prompt

Key = TypeVar("Key")
Client = TypeVar("Client", Encoder, AsyncEncoder)
Given = TypeVar("Given")

FeedItem: TypeAlias = "tuple[Key, LazyImage] | tuple[Key, LazyImage, Prompt | None]"

# A server that is started again loads its model first.
_PATIENCE = 600.0


class _Session(ABC, Generic[Client, Given]):
    """What both sessions are made from; see `BulkSession`."""

    def __init__(
        self,
        encoder: Client,
        feed: Given,
        *,
        done: Container[Any] = (),
        ordered: bool = False,
        focus: Focus = Focus(),
        outputs: Outputs = Outputs(),
        in_flight: int = DEFAULT_IN_FLIGHT,
        timeout: float = _PATIENCE,
    ) -> None:
        self.skipped = 0
        self._encoder: Client = encoder
        self._done = done
        self._focus = focus
        self._outputs = outputs
        self._timeout = timeout
        self._window: Window[list[Encoding]] = Window(in_flight, ordered=ordered)
        self._begin(feed)

    @property
    def unanswered(self) -> list[Any]:
        """The keys of the pictures that were sent and are not answered: after an EncoderError, its suspects."""
        return self._window.unanswered_keys()

    @abstractmethod
    def _begin(self, feed: Given) -> None:
        """Makes ready to read the feed."""

    def _prepare(self, item: Any) -> Keyed | None:
        """Reads the image of an item; None where the item is done."""
        if not isinstance(item, tuple) or len(item) not in (2, 3):
            got = f"a tuple of {len(item)}" if isinstance(item, tuple) else type(item).__name__
            raise InvalidInput(f"yields (key, image) or (key, image, prompt), got {got}", "feed")
        key, image, *prompt = item
        if key in self._done:
            self.skipped += 1
            return None
        return Keyed(key, _read(key, image), [Aim(prompt[0] if prompt else None, self._focus)])


class BulkSession(
    _Session[Encoder, "Iterable[FeedItem[Key]]"], Iterator["tuple[Key, Encoding | PhsError]"], Generic[Key]
):
    """Encodes a feed over one stream; iterate over it for (key, Encoding or the item's error).

    The feed is read on a thread of its own, so results come out while it waits for its next item. It is read only so
    far ahead that at most `in_flight` pictures are in memory: read, and not yet handed out. So a slow consumer, or a
    slow server, holds the feed back. If the server goes away, what is unanswered is sent again when it is back: each
    item gives exactly one result. When the feed ends, what is in flight is answered, and the iteration ends.

    Args:
        encoder: stays open, and may be used for other calls meanwhile.
        feed: yields (key, image) or (key, image, prompt). The key is the caller's, of any kind. The image is one that
            `Encoder.encode` takes, or a function that gives one and is called on the feed's thread unless the key is
            done; what it raises is that item's result, as an ImageError.
        done: the keys that are done already, whose items are left out: a set, a `Journal`, or anything that has `in`.
        ordered: results in the order of the feed; False: as they are finished.
        focus, outputs: as for `Encoder.encode`.
        in_flight: pictures in progress at a time.
        timeout: seconds to wait without any answer while pictures are in flight: longer than a restart takes.

    Attributes:
        skipped: the number of items so far that were left out because they were done.

    Raises:
        InvalidInput: `in_flight` is below 1, or the feed yields something else.
        EncoderError: no answer for `timeout` seconds, or the server refuses the call. What was in flight is not done:
            begin another session with the same `done`.
        ModelMismatch: the server came back with another model.
        What the feed raises is raised after the results of all that it gave before.
    """

    def _begin(self, feed: Iterable[FeedItem[Key]]) -> None:
        self._reader = ThreadReader(feed, self._prepare, self._window.size)
        self._results = self._run()

    def __next__(self) -> tuple[Key, Encoding | PhsError]:
        return next(self._results)

    def stop(self) -> None:
        """Takes no more from the feed; what was read by now is still answered, and then the iteration ends.

        For any thread, and for signal handlers. A feed that waits meanwhile may give one more item, which is dropped.
        """
        self._reader.stop()

    def close(self) -> None:
        """Ends at once, what is in flight unanswered. For the thread that iterates; leaving the `with` does it."""
        self._results.close()

    def __enter__(self) -> BulkSession[Key]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> Generator[tuple[Key, Encoding | PhsError], None, None]:
        feed = _ReadFeed(self._reader, self._outputs)
        try:
            for key, found in self._encoder._streamed(feed, self._window, self._timeout):
                self._reader.release()
                yield key, _result(found)
            self._reader.raise_error()
        finally:
            self._reader.close()


class AsyncBulkSession(
    _Session[AsyncEncoder, "AsyncIterable[FeedItem[Key]]"],
    AsyncIterator["tuple[Key, Encoding | PhsError]"],
    Generic[Key],
):
    """`BulkSession` for asyncio: the same arguments, results and errors, over an async feed and an AsyncEncoder.

    A task reads the feed; images, and functions that give them, are read on threads. A task that iterates may be
    cancelled; leave the `async with`, and nothing stays behind.
    """

    def _begin(self, feed: AsyncIterable[FeedItem[Key]]) -> None:
        self._reader = TaskReader(feed, self._prepare, self._window.size)
        self._results = self._run()

    async def __anext__(self) -> tuple[Key, Encoding | PhsError]:
        return await anext(self._results)

    def stop(self) -> None:
        """See `BulkSession.stop`; to be called on the event loop. What the feed waits for is cancelled."""
        self._reader.stop()

    async def close(self) -> None:
        """See `BulkSession.close`."""
        await self._results.aclose()

    async def __aenter__(self) -> AsyncBulkSession[Key]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self) -> AsyncGenerator[tuple[Key, Encoding | PhsError], None]:
        feed = _ReadFeed(self._reader, self._outputs)
        results = self._encoder._streamed(feed, self._window, self._timeout)
        try:
            async with aclosing(results):
                async for key, found in results:
                    self._reader.release()
                    yield key, _result(found)
            self._reader.raise_error()
        finally:
            await self._reader.close()


class _ReadFeed(EncodeFeed):
    """A feed whose items a reader reads."""

    def __init__(self, reader: ThreadReader[Any, Keyed] | TaskReader[Any, Keyed], outputs: Outputs) -> None:
        super().__init__(reader, outputs)
        self._reader = reader

    def ready(self) -> bool:
        return self._reader.ready()

    async def arrival(self) -> None:
        assert isinstance(self._reader, TaskReader)
        await self._reader.arrival()

    def tell(self, arrived: Callable[[], None]) -> None:
        self._reader.arrived = arrived


def _read(key: object, image: LazyImage) -> EncodedImage | PhsError:
    try:
        return load_image(image() if callable(image) else image)
    except PhsError as error:
        return error
    except Exception as error:  # the caller's own: one picture must not end a feed
        return ImageError(f"no picture of {shown(key)!r}: {reason_of(error)}")


def _result(found: list[Encoding] | PhsError) -> Encoding | PhsError:
    if isinstance(found, ModelMismatch):
        raise found  # every further item would fail too
    return found if isinstance(found, PhsError) else found[0]
