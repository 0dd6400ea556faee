"""The progress bar of an ingest or a backfill, and the report at its end."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from phs_milvus.contract.errors import shown
from phs_milvus.milvus.rows import Id

Progress: TypeAlias = "bool | Callable[[int, int], None]"

FAILURES_KEPT = 1000
_KINDS_SHOWN = 10


@dataclass
class IngestReport:
    """What an ingest did.

    Attributes:
        found: image files under the folder.
        encoded: rows written, new and changed.
        skipped_unchanged: files whose row has the same digest already.
        changed: rows that replaced an older version of the file.
        pruned: rows deleted because their file no longer exists.
        failed: (path, reason) of the first 1,000 files, and folders ending in "/", that cannot be used. If an earlier
            version of such a file is stored, its row is kept.
        failed_count: the number of all files and folders that cannot be used.
        left_out: the number of other files under the folder, by extension or another reason.
        seconds: wall time.
    """

    found: int = 0
    encoded: int = 0
    skipped_unchanged: int = 0
    changed: int = 0
    pruned: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_count: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.found:,} images in {self.seconds:.1f} s: {self.encoded:,} encoded ({self.changed:,} of them "
            f"changed), {self.skipped_unchanged:,} unchanged, {self.failed_count:,} failed; {self.pruned:,} rows "
            "pruned"
        ]
        if self.left_out:
            kinds = [f"{count:,} {kind}" for kind, count in self.left_out.most_common(_KINDS_SHOWN)]
            if len(self.left_out) > _KINDS_SHOWN:
                kinds.append("others")
            lines.append(f"  {self.left_out.total():,} files not taken: {', '.join(kinds)}")
        lines += [f"  failed: {name}: {reason}" for name, reason in self.failed[:20]]
        if self.failed_count > 20:
            lines.append(f"  ... and {self.failed_count - 20:,} more")
        return "\n".join(lines)


@dataclass
class BackfillReport:
    """What a backfill did.

    Attributes:
        rows: of the collection.
        written: states made.
        fitting: rows that had the state of their embedding already.
        differing: rows whose stored embedding is not what the model gives for their picture; they get no state.
        pruned: states deleted because their row is gone.
        failed: (id, reason) of the first 1,000 rows without a new state, the differing ones among them.
        failed_count: the number of all of them.
        seconds: wall time.
    """

    rows: int = 0
    written: int = 0
    fitting: int = 0
    differing: int = 0
    pruned: int = 0
    failed: list[tuple[Id, str]] = field(default_factory=list)
    failed_count: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows in {self.seconds:.1f} s: {self.written:,} states made, {self.fitting:,} there "
            f"already, {self.failed_count:,} failed ({self.differing:,} of them differ); {self.pruned:,} states pruned"
        ]
        lines += [f"  failed: {shown(row_id)}: {reason}" for row_id, reason in self.failed[:20]]
        if self.failed_count > 20:
            lines.append(f"  ... and {self.failed_count - 20:,} more")
        return "\n".join(lines)


class ProgressBar:
    """Counts files.

    Args:
        progress: True for a bar on stderr, False for nothing, or a function called with (done, total).
        total: number of files; an estimate, because files may be added meanwhile.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._done = 0
        self._total = total
        self._call = progress if callable(progress) else None
        self._tqdm: Any = None
        if progress is True:
            from tqdm import tqdm

            # A terminal shows one moving line; a log gets a line every ten seconds.
            interval = 0.1 if sys.stderr.isatty() else 10.0
            self._tqdm = tqdm(total=total, unit=" images", file=sys.stderr, mininterval=interval)

    def advance(self) -> None:
        """Counts one more file as done, whether it was stored, skipped or failed."""
        self._done += 1
        if self._tqdm is not None:
            self._tqdm.update()
        if self._call is not None:
            self._call(self._done, max(self._total, self._done))

    def tell(self, text: str) -> None:
        """Prints a line above the bar; nothing where there is no bar."""
        if self._tqdm is not None:
            self._tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the bar and leaves it on the screen."""
        if self._tqdm is not None:
            self._tqdm.close()
