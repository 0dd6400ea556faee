"""Folders here, in S3 and in Google Cloud Storage: what is in them, and how it is read and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from phs_milvus.contract.errors import InvalidInput, PhsError, reason_of, shown
from phs_milvus.ingest.files import IMAGE_EXTENSIONS, walk

NEEDS_PYARROW = "this needs pyarrow: pip install 'phs-milvus[scale]'"


@dataclass(frozen=True)
class Place:
    """A folder or a file, wherever it is. It can be pickled.

    Attributes:
        path: in its file system, without a scheme.
        filesystem: pyarrow's.
        local: whether it is on this machine's disks.
    """

    path: str
    filesystem: Any
    local: bool

    @classmethod
    def of(cls, text: str, field: str) -> Place:
        """The place that a path, or a URI as s3://bucket/folder, names.

        URIs that pyarrow does not know are opened by fsspec, if it has a driver for them.

        Raises:
            InvalidInput: on `field`: it cannot be opened.
            PhsError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa
            from pyarrow import fs
        except ImportError:
            raise PhsError(NEEDS_PYARROW) from None
        if "://" not in text:
            return cls(str(Path(text).expanduser().absolute()), fs.LocalFileSystem(), True)
        try:
            try:
                filesystem, path = fs.FileSystem.from_uri(text)
            except pa.ArrowInvalid:
                import fsspec

                opened, path = fsspec.core.url_to_fs(text)
                filesystem = fs.PyFileSystem(fs.FSSpecHandler(opened))
        except Exception as error:  # whatever a driver raises
            raise InvalidInput(f"cannot open {shown(text)}: {reason_of(error)}", field) from None
        return cls(path.rstrip("/"), filesystem, isinstance(filesystem, fs.LocalFileSystem))

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.path}/{name}", self.filesystem, self.local)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    def read(self) -> bytes:
        """The bytes of a file. Raises OSError."""
        with self.filesystem.open_input_stream(self.path) as file:
            return bytes(file.read())

    def files(self, suffix: str) -> list[Place]:
        """The files in this folder whose names end so, by name; none where there is no folder."""
        from pyarrow import fs

        found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        paths = sorted(info.path for info in found if info.is_file and info.path.endswith(suffix))
        return [Place(path, self.filesystem, self.local) for path in paths]

    def pictures(self) -> Iterator[str]:
        """The paths of the image files below this folder, relative to it, sorted: on a disk, those that ingest takes.

        Raises:
            InvalidInput: there is no such folder.
        """
        from pyarrow import fs

        if self.filesystem.get_file_info(self.path).type != fs.FileType.Directory:
            raise InvalidInput(f"{shown(self.path)} is not a folder", "input")
        if self.local:
            yield from walk(Path(self.path), IMAGE_EXTENSIONS)
            return
        found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        for path in sorted(info.path for info in found if info.is_file):
            name = path.removeprefix(self.path).lstrip("/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            extension = PurePosixPath(name).suffix.lower()
            # A file without an extension would have to be read to know what it is.
            if not hidden and extension and extension in IMAGE_EXTENSIONS:
                yield name

    def write_table(self, table: Any) -> None:
        """Writes a Parquet file that is there whole or not at all, whenever the process is killed."""
        self.write_tables([table])

    def write_tables(self, tables: Iterable[Any]) -> int:
        """The same of several tables of one schema, one in memory at a time; returns the number of rows.

        Without any table, nothing is written.
        """
        import pyarrow.parquet as pq

        # A bucket shows a file when it is closed, a disk at once.
        beginning, rows, writer = (self.beside if self.local else self), 0, None
        try:
            for table in tables:
                if writer is None:
                    if self.local:
                        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                    writer = pq.ParquetWriter(
                        beginning.path, table.schema, filesystem=self.filesystem, compression="zstd"
                    )
                writer.write_table(table)
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
        if writer is not None and self.local:
            Path(beginning.path).replace(self.path)
        return rows

    @property
    def beside(self) -> Place:
        """A hidden name in the same folder, of this process, for a file that is being written."""
        path = Path(self.path)
        return Place(str(path.with_name(f".{path.name}.{os.getpid()}")), self.filesystem, self.local)

    def first_value(self, column: str) -> Any:
        """The first value of a column of a Parquet file that has rows."""
        import pyarrow.parquet as pq

        with self.filesystem.open_input_file(self.path) as file:
            return next(pq.ParquetFile(file).iter_batches(1, columns=[column]))[column][0].as_py()

    def delete(self) -> None:
        """Deletes a file, if it is there."""
        with suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)
