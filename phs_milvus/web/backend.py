"""The embedding server and the collection behind a page: opened in the background, and again after they went away.

A page is served at once. Until both are there, and whenever one of them is away, `Backend.state` says what is missing
in a line that people can read, and `Backend.search` raises it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import (
    CollectionError,
    EncoderUnavailable,
    ModelMismatch,
    PhsError,
    reason_of,
    shown,
)
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.connection import close, is_lite
from phs_milvus.search.focused import FocusedSearch

# A pause between two attempts, doubled after each up to the second.
_RETRY_SECONDS, _LONGEST_PAUSE = 1.0, 16.0
_LONGEST_DETAIL = 500


@dataclass(frozen=True)
class State:
    """What a page may count on now.

    Attributes:
        name: "ready"; "loading", while the model is loaded or the collection opened; or "away".
        missing: "encoder" or "collection", whichever is waited for; "" where neither is.
        detail: one line for people where something is away; else "".
        seconds: since when it has been so.
    """

    name: str
    missing: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Ready:
    """What there is to work with.

    Attributes:
        lite: whether Milvus is Milvus Lite, which one process uses at a time.
    """

    encoder: Encoder
    collection: FocusedCollection
    search: FocusedSearch
    lite: bool


class Backend:
    """Tries, on a thread of its own, until it has an encoder and a collection; a context manager.

    Args:
        open_encoder: returns an encoder whose server answers, or raises a PhsError. It may take as long as a model
            takes to load, and is called again when the server has come back with another model.
        open_client: returns a MilvusClient, or raises a PhsError.
        collection: the collection's name.
        probe: raises CollectionError, at once, where Milvus cannot be reached; pymilvus would wait for minutes.
        say: called with a line for the terminal where something is missing, each time it is something else.
    """

    def __init__(
        self,
        open_encoder: Callable[[], Encoder],
        open_client: Callable[[], Any],
        collection: str,
        *,
        probe: Callable[[], None] = lambda: None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.collection_name = collection
        self._open_encoder, self._open_client, self._probe = open_encoder, open_client, probe
        self._tell = say
        self._encoder: Encoder | None = None
        self._client: Any = None
        self._ready: Ready | None = None
        self._missing, self._detail, self._since = "encoder", "", time.monotonic()
        self._lock = threading.Lock()
        self._closed, self._wanted = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_open, name="phs-web-backend", daemon=True)

    def __enter__(self) -> Backend:
        self._wanted.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._wanted.set()
        self._thread.join(timeout=5)
        if self._client is not None:
            close(self._client)
        if self._encoder is not None:
            self._encoder.close()

    def state(self) -> State:
        """What there is now; asks nobody."""
        with self._lock:
            seconds = time.monotonic() - self._since
            if self._ready is not None:
                return State("ready", "", "", seconds)
            return State("away" if self._detail else "loading", self._missing, self._detail, seconds)

    def ready(self) -> Ready:
        """The encoder, the collection and the search.

        Raises:
            EncoderUnavailable, CollectionError, ModelMismatch: they are not there yet, or not now.
        """
        ready, state = self._ready, self.state()
        if ready is None:
            kind = CollectionError if state.missing == "collection" else EncoderUnavailable
            raise kind(state.detail or f"the {state.missing} is still being opened; try again in a moment")
        self._probe()
        return ready

    def failed(self, error: PhsError) -> None:
        """To be told what a search raised: a collection that was made anew, or a server that came back with another
        model, must be opened again."""
        if not isinstance(error, CollectionError | ModelMismatch):
            return
        with self._lock:
            if self._ready is None:
                return
            self._ready = None
            self._say("encoder" if isinstance(error, ModelMismatch) else "collection", error)
        if isinstance(error, ModelMismatch):
            self._forget_encoder()
        self._wanted.set()

    def _keep_open(self) -> None:
        while self._wanted.wait() and not self._closed.is_set():
            self._wanted.clear()
            pause = _RETRY_SECONDS
            while not self._open():
                if self._closed.wait(pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _open(self) -> bool:
        """Opens what is not open; False, having said why, where something is missing."""
        missing = "encoder"
        try:
            if self._encoder is None:
                self._encoder = self._open_encoder()
            missing = "collection"
            with self._lock:
                if self._missing == "encoder":
                    self._say("collection", None)
            self._probe()
            if self._client is None:
                self._client = self._open_client()
            ready = self._searched(self._encoder)
        except Exception as error:  # whatever it is, it is tried again, and people read why
            with self._lock:
                self._say(missing, error)
            if isinstance(error, ModelMismatch):
                self._forget_encoder()
            return False
        with self._lock:
            self._ready = ready
            self._say("", None)
        return True

    def _forget_encoder(self) -> None:
        """An encoder is bound to the model that it met first: the next one meets what is there now."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    def _searched(self, encoder: Encoder) -> Ready:
        collection = FocusedCollection.open(self._client, self.collection_name)
        return Ready(encoder, collection, FocusedSearch(collection, encoder), is_lite(self._client))

    def _say(self, missing: str, error: Exception | None) -> None:
        """Within the lock."""
        detail = "" if error is None else str(error) if isinstance(error, PhsError) else reason_of(error)
        detail = detail and shown(detail, _LONGEST_DETAIL)
        if (missing, detail) != (self._missing, self._detail):
            self._missing, self._detail, self._since = missing, detail, time.monotonic()
            if detail:
                self._tell(detail)
