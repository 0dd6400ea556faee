"""Long work goes on while Milvus restarts, and says how far it came where Milvus stays away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from phs_milvus.contract.errors import MilvusUnavailable
from phs_milvus.ingest.progress import Progress, ProgressBar
from phs_milvus.milvus.collection import FocusedCollection

PATIENCE_S = 180.0  # a standalone Milvus that was killed is back after a minute


@contextmanager
def long_work(
    collection: FocusedCollection, progress: Progress, total: int, patience: float, stored: Callable[[], str]
) -> Iterator[ProgressBar]:
    """The bar of work on a collection, in which Milvus may be away for `patience` seconds at a time.

    Args:
        progress, total: of the bar.
        stored: says what is stored by now, for the error.

    Raises:
        MilvusUnavailable: it stayed away.
    """
    try:
        with closing(ProgressBar(progress, total)) as bar, collection.patient(patience, bar.tell):
            yield bar
    except MilvusUnavailable as error:
        raise MilvusUnavailable(f"{error}; {stored()} were stored, and the next run goes on from there") from error
