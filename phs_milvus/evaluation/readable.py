"""Labelled sets as they are on disk hold files that are cut off or no images; one of them must not end a long run."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import ImageError
from phs_milvus.contract.images import load_image
from phs_milvus.evaluation.datasets import Dataset
from phs_milvus.evaluation.store import Look, Store


def readable(dataset: Dataset, encoder: Encoder, store: Store) -> Dataset:
    """The images that can be read here and encoded there; the others go to `Dataset.unreadable`.

    Encodes every image that `store` does not have, which the methods need anyway. Draw queries from the result,
    since they name images by position.

    Raises:
        EncoderError: the server could not answer; nothing is then said about any image.
    """
    problems: dict[str, str] = {}
    looks: dict[str, Look] = {}
    for image in dataset.images:
        try:
            load_image(image.path)
            looks[image.id] = Look(image.path, hashlib.sha256(image.path.read_bytes()).hexdigest())
        except (ImageError, OSError) as error:
            problems[image.id] = str(error)
    answers = store.unusable(list(looks.values()), encoder, "images")
    for (name, look), answer in zip(looks.items(), answers, strict=True):
        if answer is not None:
            problems[name] = f"{look.path}: {answer}"
    return replace(
        dataset,
        images=tuple(image for image in dataset.images if image.id not in problems),
        unreadable={**dataset.unreadable, **problems},
    )
