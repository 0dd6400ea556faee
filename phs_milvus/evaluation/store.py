"""What the server said about an image, kept on disk: every method, head count and control is then a readout.

One SQLite file per model fingerprint and precision, written a batch at a time: killing a run loses one batch at most,
and running it again encodes only what is missing.
"""

from __future__ import annotations

import hashlib
import io
import sqlite3
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import Aim, Outputs
from phs_milvus.contract import wire
from phs_milvus.contract.errors import ImageError, InvalidInput, PhsError, reason_of, shown
from phs_milvus.contract.images import ImageSource, decode_upright, load_image
from phs_milvus.contract.types import MOST_MASK_PIXELS, Encoding, Float16Array, Float32Array, Focus, MaskRuns, ModelInfo
from phs_milvus.evaluation.edits import Edit, Pixels
from phs_milvus.pointing.prompts import Mask

BATCH = 64
# Runs of all masks of one request: a few hundred outlines as people draw them.
_MOST_RUNS = 2**18


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

    @property
    def trunk(self) -> Hashable:
        """Equal for looks at the same pixels, which the server's model sees once for all of them: at a picture with
        and without masks, and at one crop of it. Edits and foveal attention share nothing."""
        if self.edit is not None or (self.mask is not None and self.focus.fovea):
            return self.key
        zoom = 0.0 if self.mask is None else float(self.focus.single_zoom)
        return (self.digest, zoom, self.mask.runs.tobytes()) if self.mask is not None and zoom else self.digest


@dataclass(frozen=True, eq=False)
class Seen:
    """The answer to a Look.

    state: float16 [2, D]; scores: float32 [H], zeros without a mask;
    attention: float32 [H, N] of plain looks, else None.
    """

    state: Float16Array
    scores: Float32Array
    attention: Float32Array | None


# Looks, with their keys, that one request asks for.
_Item = list[tuple[bytes, Look]]
# key, state, scores, attention
_Row = tuple[bytes, bytes, bytes, bytes | None]


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

    def fill(self, looks: Sequence[Look], encoder: Encoder, doing: str = "encoding") -> None:
        """Asks and stores what is not stored. The more at once, the more share their work: see `Look.trunk`.

        Raises:
            PhsError: an image that cannot be encoded; what was encoded before it stays stored.
        """
        self._asked(looks, encoder, doing, None)

    def see(self, looks: Sequence[Look], encoder: Encoder, doing: str = "encoding") -> list[Seen]:
        """The answers to `looks`, in order; what is not stored is asked and stored, and raises as `fill` does."""
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
            with tqdm(total=len(missing), desc=doing, unit="look", dynamic_ncols=True) as bar:
                items = _items(missing, self._most_together)
                # Attention maps are large, and only plain looks need theirs.
                for attention in (True, False):
                    some = [item for item in items if attention == any(look.mask is None for _, look in item)]
                    self._ask(some, encoder, bar, failed, attention)
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
        self,
        items: Sequence[_Item],
        encoder: Encoder,
        bar: Any,
        failed: dict[bytes, ImageError] | None,
        attention: bool,
    ) -> None:
        results = encoder.encode_aims(
            _sent(items, encoder.info.limits.image_bytes),
            outputs=Outputs(state=True, head_weights=True, attention=attention),
        )
        rows: list[_Row] = []
        try:
            for item, result in zip(items, results, strict=True):
                if isinstance(result, ImageError) and failed is not None:
                    failed.update((key, result) for key, _ in item)
                elif isinstance(result, PhsError):
                    raise type(result)(f"{item[0][1].path}: {result}") from result
                else:
                    rows += [self._row(key, look, one) for (key, look), one in zip(item, result, strict=True)]
                bar.update(len(item))
                if len(rows) >= BATCH:
                    self._write(rows)
                    rows = []
        finally:
            self._write(rows)

    @property
    def _most_together(self) -> int:
        """Looks that one request may ask for: more would make too large an answer for this server."""
        info = self._info
        patches = info.grid_height * info.grid_width
        each = 4 * (info.embedding_size + info.hidden_size + info.heads * (patches + 2))
        return max(1, min(wire.MOST_PROMPTS, info.limits.message_bytes // (2 * each)))

    def _write(self, rows: Sequence[_Row]) -> None:
        """In one short transaction: other runs may write to the same file."""
        with self._translated_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", rows)

    def _row(self, key: bytes, look: Look, encoding: Encoding) -> _Row:
        assert encoding.state is not None
        scores = np.zeros(self._info.heads, np.float32) if encoding.head_scores is None else encoding.head_scores
        plain = encoding.attention if look.mask is None else None
        attention = None if plain is None else plain.astype("<f4").tobytes()
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


def _items(looks: Mapping[bytes, Look], most: int) -> list[_Item]:
    """Looks by what the model sees once for all of them, at most so many together; a picture's follow each other."""
    pictures: dict[str, dict[Hashable, _Item]] = {}
    for key, look in looks.items():
        pictures.setdefault(look.digest, {}).setdefault(look.trunk, []).append((key, look))
    return [part for trunks in pictures.values() for item in trunks.values() for part in _split(item, most)]


def _split(item: _Item, most: int) -> Iterator[_Item]:
    part: _Item = []
    runs = pixels = 0
    for key, look in item:
        more, size = (0, 0) if look.mask is None else (len(look.mask.runs), look.mask.width * look.mask.height)
        if part and (len(part) == most or runs + more > _MOST_RUNS or pixels + size > MOST_MASK_PIXELS):
            yield part
            part, runs, pixels = [], 0, 0
        part.append((key, look))
        runs, pixels = runs + more, pixels + size
    yield part


def _sent(items: Iterable[_Item], limit: int) -> Iterator[tuple[ImageSource, list[Aim]]]:
    """What to send for each item: an image, in `limit` bytes where that can be, and how to look at it."""
    pixels_of = lru_cache(maxsize=1)(_pixels)  # a picture's edits follow each other
    for item in items:
        _, look = item[0]
        if look.edit is None or look.mask is None:
            yield look.path, [_aim(look) for _, look in item]
        else:
            edited = Image.fromarray(look.edit.apply(pixels_of(look.path), look.mask.to_array()))
            yield _lossless(edited, limit), [Aim(None)]


def _aim(look: Look) -> Aim:
    if look.mask is None:
        return Aim(None)
    # Head counts are a matter of the readout.
    asked = Focus(attention_shift=look.focus.attention_shift, zoom=look.focus.zoom, fovea=look.focus.fovea)
    return Aim(Mask(look.mask), asked)


def _pixels(path: Path) -> Pixels:
    return np.asarray(decode_upright(load_image(path).data))


def _lossless(image: Image.Image, limit: int) -> bytes:
    # BMP is many times faster to write and read, and too large for photos of over 11 megapixels.
    fits = 3 * image.width * image.height < limit - 64 * 1024
    buffer = io.BytesIO()
    image.save(buffer, "BMP") if fits else image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
