"""One part of an encoding: reads the pictures of some keys, encodes them, and writes what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract import errors
from phs_milvus.contract import state as state_codec
from phs_milvus.contract.errors import ImageError, PhsError, reason_of
from phs_milvus.contract.images import EncodedImage, load_image
from phs_milvus.contract.types import Encoding, StateFormat
from phs_milvus.ingest.encoding import THREADS, encoded
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.parts import Picture, table_of
from phs_milvus.scale.places import Place


@dataclass(frozen=True)
class PartReport:
    """One part.

    Attributes:
        name: of its files.
        encoded, failed: how many pictures were encoded, or could not be used.
        error, message: the kind and the text of the error that ended it, or "".
    """

    name: str
    encoded: int
    failed: int
    error: str = ""
    message: str = ""

    def check(self) -> None:
        """Raises the error that ended it, if one did."""
        if self.error:
            raise getattr(errors, self.error)(self.message)


@dataclass(eq=False)
class _Work:
    key: str
    metadata: dict[str, Any] = field(default_factory=dict)
    image: EncodedImage | None = None


@dataclass(frozen=True, eq=False)
class PartEncoder:
    """How parts are encoded; it can be pickled.

    Attributes:
        source, target: the folder of the pictures, and the folder of parts and error tables.
        open_encoder: opens the client of an embedding server.
        state_format: how states are packed.
        model: that made the parts which are there already; None where there is none.
    """

    source: Place
    target: Place
    open_encoder: Callable[[], AbstractContextManager[Encoder]]
    state_format: StateFormat
    model: ModelRecord | None = None

    def actor(self) -> Any:
        """The class of a Ray Data actor: opens the encoder once, then makes parts of pyarrow.Tables (key, metadata)."""
        how = self

        class Actor:
            def __init__(self) -> None:
                self._opened = ExitStack()
                self._encoder: Encoder | None = None

            def __call__(self, batch: Any) -> Any:
                import pyarrow as pa

                try:
                    if self._encoder is None:
                        self._encoder = self._opened.enter_context(how.open_encoder())
                    report = how.encode(batch, self._encoder)
                except PhsError as error:  # told as a value: Ray would make another error of it, and print both
                    report = PartReport("", 0, 0, type(error).__name__, str(error))
                return pa.Table.from_pylist([asdict(report)])

        return Actor

    def encode(self, batch: Any, encoder: Encoder) -> PartReport:
        """Encodes the pictures of a pyarrow.Table with the columns key and metadata.

        Raises:
            ModelMismatch: the encoder's model is not that of the parts that are there.
            EncoderError: it no longer answers. Nothing is written.
        """
        if self.model is not None:
            self.model.check(encoder.info, self.target.path)
        record = ModelRecord.of(encoder.info, self.state_format)
        keys = batch["key"].to_pylist()
        works = [
            _Work(key, json.loads(metadata)) for key, metadata in zip(keys, batch["metadata"].to_pylist(), strict=True)
        ]
        pictures: list[Picture] = []
        unusable: list[tuple[str, str, str]] = []

        def load(work: _Work) -> EncodedImage | PhsError:
            try:
                work.image = load_image((self.source / work.key).read())
                if len(work.image.data) > (limit := encoder.info.limits.image_bytes):
                    raise ImageError(f"{len(work.image.data):,} bytes; the server takes at most {limit:,}")
                return work.image
            except PhsError as error:
                return error
            except OSError as error:
                return ImageError(f"cannot be read: {reason_of(error)}")

        def failed(work: _Work, error: PhsError) -> None:
            unusable.append((work.key, type(error).__name__, str(error)))

        pool = ThreadPoolExecutor(THREADS, "phs-encode")
        try:
            for work, encoding in encoded(encoder, works, load, failed, pool):
                pictures.append(self._picture(work, encoding))
                work.image = None  # its bytes
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return self._write(keys, pictures, unusable, record)

    def _picture(self, work: _Work, encoding: Encoding) -> Picture:
        assert work.image is not None
        image = work.image
        state = state_codec.pack(encoding.required("state"), self.state_format)
        # As `ingest` stores it: where the picture is, for boxes in hits.
        path = {"path": (self.source / work.key).path} if self.source.local else {}
        metadata = {**work.metadata, **path}
        return Picture(
            work.key, encoding.required("embedding"), state, image.digest, image.width, image.height, metadata
        )

    def _write(
        self, keys: list[str], pictures: list[Picture], unusable: list[tuple[str, str, str]], record: ModelRecord
    ) -> PartReport:
        import pyarrow as pa

        name = part_name(keys)
        # The errors first: a part without its errors would be encoded again in other company.
        table = self.target / "errors" / f"{name}.parquet"
        table.delete()  # that of a worker which was killed
        if unusable:
            names = ("key", "error", "message")
            columns = [pa.array(column, pa.string()) for column in zip(*unusable, strict=True)]
            table.write_table(pa.table(dict(zip(names, columns, strict=True))))
        if pictures:
            (self.target / "parts" / f"{name}.parquet").write_table(table_of(pictures, record))
        return PartReport(name, len(pictures), len(unusable))


def part_name(keys: Sequence[str]) -> str:
    """The name of the part with these keys: the same keys, the same name."""
    return hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).hexdigest()[:24]
