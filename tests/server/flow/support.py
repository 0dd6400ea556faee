"""Requests of the pipeline and its views, as plain calls."""

from __future__ import annotations

from phs_milvus.contract.types import Encoding, Focus, MaskRuns, Pointing
from phs_server.flow.held import HeldPictures
from phs_server.flow.pipeline import Pipeline
from phs_server.flow.preprocess import Decode
from phs_server.flow.views import Asked, View, views_of


async def encode(
    pipeline: Pipeline, image: bytes, mask: MaskRuns | None = None, focus: Focus = Focus(), **options: object
) -> Encoding:
    """One prompt for one image."""
    (encoding,) = await pipeline.encode(Asked(image, b"", [Pointing(mask, focus)]), **options)
    return encoding


def view(image: bytes, mask: MaskRuns | None, focus: Focus, *, grid: int, decode: Decode, heads_on: int = 1) -> View:
    """The only view of one prompt for one image."""
    asked = Asked(image, b"", [Pointing(mask, focus)])
    (only,) = views_of(asked, grid=grid, head_count=lambda _: heads_on, decode=decode, held=HeldPictures(0))
    return only
