"""Many pictures through the embedding server, in order; a picture at which the server stops fails alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import EncoderError, ModelMismatch, PhsError
from phs_milvus.contract.images import EncodedImage
from phs_milvus.contract.types import Encoding
from phs_milvus.ingest.culprits import answers_again
from phs_milvus.ingest.files import ahead

T = TypeVar("T")

THREADS = 8
_OUTPUTS = Outputs(state=True)


def encoded(
    encoder: Encoder,
    items: Iterable[T],
    load: Callable[[T], EncodedImage | PhsError],
    failed: Callable[[T, PhsError], None],
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[T, Encoding]]:
    """Encodes the pictures of items, with embedding and state.

    Args:
        items: are taken as they are needed.
        load: reads the picture of an item, or says why it cannot; runs in the pool, a little ahead.
        failed: called with each item that is not encoded, and why, between the others.

    Yields:
        each other item with its Encoding, in order.

    Raises:
        EncoderError: the server no longer answers.
        ModelMismatch: it has another model now, so every further item would fail too.
    """
    sent: deque[T] = deque()

    def images() -> Iterator[EncodedImage]:
        for item, image in ahead(pool, load, items):
            if isinstance(image, EncodedImage):
                sent.append(item)
                yield image
            else:
                failed(item, image)

    feed = images()
    while True:
        try:
            for result in encoder.encode_many(feed, outputs=_OUTPUTS):
                yield from _taken(sent.popleft(), result, failed)
            return
        except EncoderError:
            if not answers_again(encoder):
                raise
        # One by one, what was in flight: the picture that stopped the server is among it.
        while sent:
            image = load(sent[0])
            one = image if isinstance(image, PhsError) else _encoded_alone(encoder, image)
            yield from _taken(sent.popleft(), one, failed)


def _taken(item: T, result: Encoding | PhsError, failed: Callable[[T, PhsError], None]) -> Iterator[tuple[T, Encoding]]:
    if isinstance(result, ModelMismatch):
        raise result
    if isinstance(result, PhsError):
        failed(item, result)
    else:
        yield item, result


def _encoded_alone(encoder: Encoder, image: EncodedImage) -> Encoding | PhsError:
    try:
        return encoder.encode(image, outputs=_OUTPUTS)
    except PhsError as error:
        if isinstance(error, EncoderError) and not answers_again(encoder):
            raise
        return error
