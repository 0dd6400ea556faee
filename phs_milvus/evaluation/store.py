"""What the server said about an image, kept on disk: every method, head count and control is then a readout.

One SQLite file per model fingerprint and precision, written a batch at a time: killing a run loses one batch at most,
and running it again encodes only what is missing.
"""

from __future__ import annotations

import hashlib
import io
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Outputs
from phs_milvus.contract.errors import ImageError, InvalidInput, PhsError, reason_of, shown
from phs_milvus.contract.images import decode_upright, load_image
from phs_milvus.contract.types import Encoding, Float16Array, Float32Array, Focus, MaskRuns, ModelInfo
from phs_milvus.evaluation.edits import Edit
from phs_milvus.pointing.prompts import Mask, Prompt

BATCH = 64


@dataclass(frozen=True, eq=False)
class Look:
    """One thing to ask the server: an image, edited or not, with or without a mask, under a focus.

    Attributes:
        digest: sha256 of the file at `path`.
        edit: applied to the pixels with `mask`; the server then sees a plain image.
        focus: of which attention shift, zoom and fovea count; head counts are a matter of the readout.
    """

    path: Path
    digest: str
    mask: MaskRuns | None = None
    edit: Edit | None = None
    focus: Focus = Focus.paper()

    @property
    def key(self) -> bytes:
        """16 bytes that say what is asked, of which image."""
        asked = (float(self.focus.attention_shift), float(self.focus.single_zoom), float(self.focus.fovea))
        focus = "" if self.mask is None or self.edit else str(asked)
        what = hashlib.sha256(f"{self.digest} {self.edit.name if self.edit else ''} {focus}".encode())
        if self.mask is not None:
            what.update(f" {self.mask.width} {self.mask.height} ".encode() + self.mask.runs.astype("<u4").tobytes())
        return what.digest()[:16]


@dataclass(frozen=True, eq=False)
class Seen:
    """The answer to a Look.

    state: float16 [2, D]; scores: float32 [H], zeros without a mask;
    attention: float32 [H, N] of plain looks, else None.
    """

    state: Float16Array
    scores: Float32Array
    attention: Float32Array | None


class Store:
    """The cache of one model's answers in a folder. Use it as a context manager, from one thread.

    Raises, as all its methods do:
        InvalidInput: on field "cache": the folder cannot be written, or the file there is no cache.
    """

    def __init__(self, folder: str | Path, info: ModelInfo) -> None:
        self._info = info
        self.path = Path(folder) / f"{info.fingerprint[:16]}-{info.precision}.sqlite"
        with self._translated_errors():
            Path(folder).mkdir(parents=True, exist_ok=True)
            # Another run may be in the middle of a batch.
            self._db = sqlite3.connect(self.path, timeout=60)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS seen (key BLOB PRIMARY KEY, state BLOB, scores BLOB, attention BLOB)"
            )

    def see(self, looks: Sequence[Look], encoder: Encoder, doing: str = "encoding") -> list[Seen]:
        """The answers to `looks`, in order; what is not stored is asked and stored.

        Raises:
            PhsError: an image that cannot be encoded; what was encoded before it stays stored.
        """
        keys = self._asked(looks, encoder, doing, None)
        return [self._load(key) for key in keys]

    def unusable(self, looks: Sequence[Look], encoder: Encoder, doing: str = "encoding") -> list[ImageError | None]:
        """As `see`, but what is wrong with each image that cannot be encoded, and None for the others."""
        failed: dict[bytes, ImageError] = {}
        return [failed.get(key) for key in self._asked(looks, encoder, doing, failed)]

    def _asked(
        self, looks: Sequence[Look], encoder: Encoder, doing: str, failed: dict[bytes, ImageError] | None
    ) -> list[bytes]:
        """The looks' keys, stored if they were not; bad images are put into `failed`, or raised if that is None."""
        keys = [look.key for look in looks]
        missing = {key: look for key, look in zip(keys, looks, strict=True) if not self._has(key)}
        if missing:
            with tqdm(total=len(missing), desc=doing, unit="image", dynamic_ncols=True) as bar:
                ordered = sorted(missing.items(), key=lambda item: _asked_together(item[1]))
                for _, group in groupby(ordered, key=lambda item: _asked_together(item[1])):
                    self._ask(list(group), encoder, bar, failed)
        return keys

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = f"cannot keep encoded images in {shown(self.path)}: {reason_of(error)}; name another folder"
            raise InvalidInput(reason, "cache") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, items: list[tuple[bytes, Look]], encoder: Encoder, bar: Any, failed: dict[bytes, ImageError] | None
    ) -> None:
        looks = [look for _, look in items]
        focus = Focus(
            attention_shift=looks[0].focus.attention_shift, zoom=looks[0].focus.zoom, fovea=looks[0].focus.fovea
        )
        results = encoder.encode_many(
            (_image(look, encoder.info.limits.image_bytes) for look in looks),
            (_prompt(look) for look in looks),
            focus=focus,
            outputs=Outputs(state=True, head_weights=True, attention=looks[0].mask is None),
        )
        rows: list[tuple[bytes, bytes, bytes, bytes | None]] = []
        try:
            for (key, look), result in zip(items, results, strict=True):
                if isinstance(result, ImageError) and failed is not None:
                    failed[key] = result
                    bar.update()
                    continue
                if isinstance(result, PhsError):
                    raise type(result)(f"{look.path}: {result}") from result
                rows.append(self._row(key, result))
                bar.update()
                if len(rows) == BATCH:
                    self._write(rows)
                    rows = []
        finally:
            self._write(rows)

    def _write(self, rows: list[tuple[bytes, bytes, bytes, bytes | None]]) -> None:
        """In one short transaction: other runs may write to the same file."""
        with self._translated_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", rows)

    def _row(self, key: bytes, encoding: Encoding) -> tuple[bytes, bytes, bytes, bytes | None]:
        assert encoding.state is not None
        scores = np.zeros(self._info.heads, np.float32) if encoding.head_scores is None else encoding.head_scores
        attention = None if encoding.attention is None else encoding.attention.astype("<f4").tobytes()
        return key, encoding.state.astype("<f2").tobytes(), scores.astype("<f4").tobytes(), attention

    def _has(self, key: bytes) -> bool:
        with self._translated_errors():
            return self._db.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None

    def _load(self, key: bytes) -> Seen:
        with self._translated_errors():
            state, scores, attention = self._db.execute(
                "SELECT state, scores, attention FROM seen WHERE key = ?", (key,)
            ).fetchone()
        return Seen(
            np.frombuffer(state, "<f2").reshape(2, self._info.hidden_size),
            np.frombuffer(scores, "<f4"),
            None if attention is None else np.frombuffer(attention, "<f4").reshape(self._info.heads, -1),
        )


def _asked_together(look: Look) -> tuple[Any, ...]:
    """Looks with equal values can share one stream."""
    return look.mask is None, look.edit is not None, look.focus.attention_shift, look.focus.zoom, look.focus.fovea


def _image(look: Look, limit: int) -> Path | bytes:
    """What to send for a look, in `limit` bytes where that can be."""
    if look.edit is None or look.mask is None:
        return look.path
    pixels = np.asarray(decode_upright(load_image(look.path).data))
    edited = Image.fromarray(look.edit.apply(pixels, look.mask.to_array()))
    # Lossless both; BMP is many times faster to write and read, and too large for photos of over 11 megapixels.
    fits = 3 * edited.width * edited.height < limit - 64 * 1024
    buffer = io.BytesIO()
    edited.save(buffer, "BMP") if fits else edited.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _prompt(look: Look) -> Prompt | None:
    return None if look.mask is None or look.edit is not None else Mask(look.mask)
