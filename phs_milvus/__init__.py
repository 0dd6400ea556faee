"""Search a Milvus image collection by the thing you point at.

    from phs_milvus import Box, Encoder, FocusedCollection, FocusedSearch, connect

    with Encoder("127.0.0.1:50051") as encoder:
        collection = FocusedCollection.open(connect("./phs_milvus.db"), "images")
        print(FocusedSearch(collection, encoder).search("street.jpg", Box(40, 60, 180, 220)))

Names are loaded when first used, so that importing the package costs little and needs neither Milvus nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phs_milvus.client.aio import AsyncEncoder
    from phs_milvus.client.channels import Tls
    from phs_milvus.client.encoder import Encoder
    from phs_milvus.client.journal import Journal
    from phs_milvus.client.requests import Outputs
    from phs_milvus.client.session import AsyncBulkSession, BulkSession
    from phs_milvus.contract import state, telemetry
    from phs_milvus.contract.errors import (
        CollectionError,
        DeadlineExceeded,
        EncoderBusy,
        EncoderError,
        EncoderUnauthenticated,
        EncoderUnavailable,
        ImageError,
        InvalidInput,
        MilvusUnavailable,
        ModelError,
        ModelMismatch,
        PhsError,
        PromptError,
        StateError,
    )
    from phs_milvus.contract.types import Encoding, Explanation, Focus, ModelInfo
    from phs_milvus.ingest.aio import backfill_async, ingest_folder_async
    from phs_milvus.ingest.backfill import backfill
    from phs_milvus.ingest.folder import ingest_folder
    from phs_milvus.ingest.progress import BackfillReport, IngestReport
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.milvus.connection import connect
    from phs_milvus.milvus.rows import Row
    from phs_milvus.pointing.prompts import Box, Mask, Point, Polygon
    from phs_milvus.search.aio import AsyncFocusedSearch
    from phs_milvus.search.focused import FocusedSearch
    from phs_milvus.search.hits import Hit, SearchResult
    from phs_milvus.search.queries import Examples, Query, StoredImage
    from phs_milvus.search.rerank import Ranking, Reranker

_MODULES = {
    "client.aio": ("AsyncEncoder",),
    "client.journal": ("Journal",),
    "client.session": ("AsyncBulkSession", "BulkSession"),
    "client.requests": ("Outputs",),
    "client.channels": ("Tls",),
    "client.encoder": ("Encoder",),
    "milvus.collection": ("FocusedCollection",),
    "contract.errors": (
        "CollectionError",
        "DeadlineExceeded",
        "EncoderBusy",
        "EncoderError",
        "EncoderUnauthenticated",
        "EncoderUnavailable",
        "ImageError",
        "InvalidInput",
        "MilvusUnavailable",
        "ModelError",
        "ModelMismatch",
        "PhsError",
        "PromptError",
        "StateError",
    ),
    "ingest.aio": ("backfill_async", "ingest_folder_async"),
    "ingest.backfill": ("backfill",),
    "ingest.folder": ("ingest_folder",),
    "ingest.progress": ("BackfillReport", "IngestReport"),
    "milvus.connection": ("connect",),
    "pointing.prompts": ("Box", "Mask", "Point", "Polygon"),
    "search.rerank": ("Ranking", "Reranker"),
    "milvus.rows": ("Row",),
    "search.aio": ("AsyncFocusedSearch",),
    "search.focused": ("FocusedSearch",),
    "search.hits": ("Hit", "SearchResult"),
    "search.queries": ("Examples", "Query", "StoredImage"),
    "contract.types": ("Encoding", "Explanation", "Focus", "ModelInfo"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AsyncBulkSession",
    "AsyncEncoder",
    "AsyncFocusedSearch",
    "BackfillReport",
    "Box",
    "BulkSession",
    "CollectionError",
    "DeadlineExceeded",
    "Encoder",
    "EncoderBusy",
    "EncoderError",
    "EncoderUnauthenticated",
    "EncoderUnavailable",
    "Encoding",
    "Examples",
    "Explanation",
    "Focus",
    "FocusedCollection",
    "FocusedSearch",
    "Hit",
    "ImageError",
    "IngestReport",
    "InvalidInput",
    "Journal",
    "Mask",
    "MilvusUnavailable",
    "ModelError",
    "ModelInfo",
    "ModelMismatch",
    "Outputs",
    "PhsError",
    "Point",
    "Polygon",
    "PromptError",
    "Query",
    "Ranking",
    "Reranker",
    "Row",
    "SearchResult",
    "StateError",
    "StoredImage",
    "Tls",
    "backfill",
    "backfill_async",
    "connect",
    "ingest_folder",
    "ingest_folder_async",
    "state",
    "telemetry",
]


def __getattr__(name: str) -> object:
    if name in ("state", "telemetry"):  # modules: the codec of PHS states; metrics and traces
        return import_module(f"phs_milvus.contract.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'phs_milvus' has no attribute {name!r}")
    return getattr(import_module(f"phs_milvus.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
