"""What a client sends down a stream of images, and how it reads what comes back. No network I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message

from phs_milvus.client import answers, requests
from phs_milvus.client.bulk import Window
from phs_milvus.client.requests import Aim, Outputs
from phs_milvus.contract import wire
from phs_milvus.contract._pb import encoder_pb2 as pb
from phs_milvus.contract.errors import PhsError
from phs_milvus.contract.images import ImageSource, load_image
from phs_milvus.contract.location import LocateTarget, Location
from phs_milvus.contract.types import Encoding, Limits, ModelInfo

Result = TypeVar("Result")
Item = TypeVar("Item")


class Feed(ABC, Generic[Item, Result]):
    """Items to messages, and answers to results.

    Attributes:
        method: of the service.
        opening: messages that begin every stream.
        answered: the field of an answer that holds its result.
    """

    method: str
    answered: str
    opening: Sequence[Message] = ()

    def __init__(self, items: Iterable[Item]) -> None:
        self._items: Iterator[Item] = iter(items)
        self.exhausted = False

    def ready(self) -> bool:
        """Whether the next item, or the end, can be had without waiting; as long as it cannot, answers come first."""
        return True

    async def arrival(self) -> None:
        """Waits until `ready`."""

    def tell(self, arrived: Callable[[], None]) -> None:
        """Calls `arrived` from now on, in place of what it called before, whenever `ready` has become true."""

    def fill(self, window: Window[Result], expected: str, limits: Limits) -> Message | None:
        """Adds the next item to the window and returns the message to send; None where there is none, or where the item
        failed before that."""
        item = next(self._items, self)
        if item is self:
            self.exhausted = True
            return None
        key = self._key(item)  # type: ignore[arg-type]
        try:
            message_of = partial(self._message, self._request(item, expected, limits))  # type: ignore[arg-type]
        except PhsError as error:
            window.add_failed(key, error)
            return None
        return window.add(key, message_of)

    def record(self, window: Window[Result], answer: Any, info: ModelInfo | None, address: str) -> bool:
        """See `answers.record`; info: None where the answer holds an error."""
        read = None if info is None else partial(self._read, answer, info, address)
        return answers.record(window, answer, read, address)

    def _key(self, item: Item) -> Any:
        """What the item's result is handed out with."""
        return None

    @abstractmethod
    def _request(self, item: Item, expected: str, limits: Limits) -> Any:
        """What an item is on the wire, without its number; raises a PhsError where it cannot be used."""

    @abstractmethod
    def _message(self, request: Any, number: int) -> Message:
        """The message to send for it."""

    @abstractmethod
    def _read(self, answer: Any, info: ModelInfo, address: str, message: Any) -> Result:
        """The result in the answer to that message."""


class Keyed(NamedTuple):
    """An image to encode under one prompt or several, and the caller's key for it; or why there is no image."""

    key: Any
    image: ImageSource | PhsError
    aims: Sequence[Aim]


class EncodeFeed(Feed[Keyed, list[Encoding]]):
    """Images, each under one prompt or several, to be encoded."""

    method = "EncodeStream"
    answered = "response"

    def __init__(self, items: Iterable[Keyed], outputs: Outputs) -> None:
        super().__init__(items)
        self._outputs = outputs

    def _key(self, item: Keyed) -> Any:
        return item.key

    def _request(self, item: Keyed, expected: str, limits: Limits) -> pb.EncodeRequest:
        if isinstance(item.image, PhsError):
            raise item.image
        return requests.encode_request(load_image(item.image), item.aims, self._outputs, expected, limits)

    def _message(self, request: pb.EncodeRequest, number: int) -> Message:
        return wire.stream_request(number, request)

    def _read(
        self, answer: pb.EncodeStreamResponse, info: ModelInfo, address: str, message: pb.EncodeStreamRequest
    ) -> list[Encoding]:
        return answers.encodings(answer.response, message.request, info, address)


LazyImage: TypeAlias = "ImageSource | Callable[[], ImageSource]"


class LocateFeed(Feed[LazyImage, Location]):
    """Images in which to look for something; one that is a function is called when it is its turn."""

    method = "Locate"
    answered = "location"

    def __init__(self, images: Iterable[LazyImage], target: LocateTarget, expected: str) -> None:
        super().__init__(images)
        self._target = target
        self.opening = [wire.locate_query(target, expected)]

    def _request(self, item: LazyImage, expected: str, limits: Limits) -> pb.LocateRequest:
        image = load_image(item() if callable(item) else item)
        return requests.sized(wire.locate_image(0, image.data), limits)

    def _message(self, request: pb.LocateRequest, number: int) -> Message:
        request.id = number
        return request

    def _read(self, answer: pb.LocateResponse, info: ModelInfo, address: str, message: object) -> Location:
        return answers.location(answer, self._target, info, address)
