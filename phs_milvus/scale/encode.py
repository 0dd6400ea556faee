"""Encodes pictures on one machine or many, by Ray, into Parquet files.

    print(encode("s3://bucket/photos", "s3://bucket/encoded", partial(Encoder, "10.0.0.7:50051"), ray_address="auto"))

The pictures are cut into parts of some hundred, and each part is one task of an actor: it reads and encodes the part's
pictures and writes OUTPUT/parts/NAME.parquet, and OUTPUT/errors/NAME.parquet for those that cannot be used. A file is
there whole or not at all and named by the keys in it, so that a task that Ray runs twice writes the same file twice.
The next run leaves out the keys of every file that is there.

Pictures are read by the actors and not by ray.data.read_binary_files, which fails a whole block, and then the job,
where one file cannot be read.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from phs_milvus.client.encoder import Encoder
from phs_milvus.contract.errors import InvalidInput, PhsError, reason_of, shown
from phs_milvus.contract.types import StateFormat
from phs_milvus.ingest.files import chunks
from phs_milvus.milvus.rows import ModelRecord
from phs_milvus.scale.encoding import PartEncoder, PartReport
from phs_milvus.scale.parts import keys_of, model_of, parts_at, read
from phs_milvus.scale.places import Place

OpenEncoder: TypeAlias = Callable[[], AbstractContextManager[Encoder]]

_MOST_PER_PART = 100_000


@dataclass
class EncodeReport:
    """What `encode` did.

    Attributes:
        found: pictures below the folder.
        finished_before: of these, what earlier runs had encoded, or had in their error tables.
        encoded, failed: by this run.
        parts: files that this run wrote.
        seconds: wall time.
    """

    found: int = 0
    finished_before: int = 0
    encoded: int = 0
    failed: int = 0
    parts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.encoded / self.seconds if self.seconds else 0.0
        return (
            f"{self.found:,} pictures in {self.seconds:.1f} s ({rate:.1f} encoded/s): {self.encoded:,} encoded into "
            f"{self.parts:,} parts, {self.failed:,} in the error table, {self.finished_before:,} finished before"
        )


def encode(
    input: str,
    output: str,
    open_encoder: OpenEncoder,
    *,
    keys: Sequence[str] = (),
    ray_address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    cpus_per_worker: float = 1.0,
    rows_per_part: int = 1024,
    state_format: StateFormat = "int8",
    progress: Callable[[EncodeReport], None] | None = None,
) -> EncodeReport:
    """Encodes all pictures below a folder, each once, however often this is interrupted and run again.

    Args:
        input: a folder, or s3://, gs:// or another URI of one. It is read from every machine of the Ray cluster.
        output: likewise, to write to.
        open_encoder: is called once in each worker, for example partial(Encoder, ["a:50051", "b:50051"]), or a context
            manager that loads a model there; it must be picklable.
        keys: Parquet files as `scale export` writes them: only the pictures that are named there are encoded, at
            input/KEY, and their metadata is kept.
        ray_address: of a Ray cluster; None: Ray is started here and ends with this process, unless it runs already.
        workers: actors; None: as many as the cluster has room for.
        gpus_per_worker, cpus_per_worker: what Ray reserves for each; fewer cores where there are fewer.
        rows_per_part: pictures a file, and a task: what is lost when a worker is killed.
        state_format: how states are packed.
        progress: called after every part.

    Raises:
        InvalidInput: an argument cannot be used; `.field` names it.
        ModelMismatch: the parts that are there were made by another model.
        EncoderError: an embedding server no longer answers. Finished parts stay, and the next run goes on.
    """
    started = time.monotonic()
    if not 1 <= rows_per_part <= _MOST_PER_PART:
        raise InvalidInput(f"is 1 to {_MOST_PER_PART:,}, got {rows_per_part}", "rows_per_part")
    if workers is not None and workers < 1:
        raise InvalidInput(f"is 1 or more, got {workers}", "workers")
    source, target = Place.of(input, "input"), Place.of(output, "output")
    report = EncodeReport()
    tasks = list(_tasks(_wanted(source, keys), target, rows_per_part, report))
    encoder = PartEncoder(source, target, open_encoder, state_format, _model_at(target))
    for done in _by_ray(encoder, tasks, ray_address, workers, gpus_per_worker, cpus_per_worker):
        report.encoded += done.encoded
        report.failed += done.failed
        report.parts += 1
        report.seconds = time.monotonic() - started
        if progress is not None:
            progress(report)
    report.seconds = time.monotonic() - started
    return report


def _keys(folder: Place) -> Any:
    import pyarrow as pa

    found = [chunk for file in folder.files(".parquet") for chunk in keys_of(file).chunks]
    return pa.concat_arrays(found) if found else pa.array([], pa.string())


def _model_at(target: Place) -> ModelRecord | None:
    there = (target / "parts").files(".parquet")
    return model_of(there[:1]) if there else None


def _wanted(source: Place, keys: Sequence[str]) -> Any:
    """A pyarrow.Table of the pictures to encode: key, and metadata as JSON."""
    import pyarrow as pa

    if not keys:
        names = pa.array(source.pictures(), pa.string())
        return pa.table({"key": names, "metadata": pa.array(["{}"] * len(names), pa.string())})
    rows = [one for part in parts_at(keys) for page in read(part) for one in page]
    if wrong := next((one.key for one in rows if not isinstance(one.key, str)), None):
        raise InvalidInput(f"are paths of pictures, got {shown(wrong)}: this collection has integer ids", "keys")
    metadata = [json.dumps(one.metadata, ensure_ascii=False) for one in rows]
    return pa.table({"key": pa.array([one.key for one in rows], pa.string()), "metadata": metadata})


def _tasks(wanted: Any, target: Place, rows_per_part: int, report: EncodeReport) -> Iterator[Any]:
    """Tables of the pictures that are neither encoded nor in the error table, one a part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    report.found = len(wanted)
    done = pa.concat_arrays([_keys(target / kind) for kind in ("parts", "errors")])
    left = wanted.filter(pc.invert(pc.is_in(wanted["key"], value_set=done)))
    report.finished_before = len(wanted) - len(left)
    for rows in chunks(range(len(left)), rows_per_part):
        yield left.slice(rows[0], len(rows)).combine_chunks()


def _by_ray(
    encoder: PartEncoder,
    tasks: list[Any],
    address: str | None,
    workers: int | None,
    gpus: float,
    cpus: float,
) -> Iterator[PartReport]:
    if not tasks:
        return
    try:
        import ray
    except ImportError:
        raise PhsError("encoding by Ray needs it: pip install 'phs-milvus[ray]'") from None
    started_here = not ray.is_initialized()
    if started_here:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which Ray would send home
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except ConnectionError as error:
            raise InvalidInput(f"there is no Ray cluster at {shown(address)}: {reason_of(error)}", "ray") from None
        except RuntimeError as error:
            raise PhsError(f"Ray did not start: {reason_of(error)}; run the same again") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        count, cpus = _room(ray, workers, gpus, cpus, len(tasks))
        done = ray.data.from_arrow(tasks).map_batches(
            encoder.actor(),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        for row in done.iter_rows():
            part = PartReport(**row)
            part.check()
            yield part
    except ray.exceptions.RayError as error:
        raise PhsError(f"Ray could not go on: {reason_of(error)}; run the same again to continue") from error
    finally:
        if started_here:
            ray.shutdown()


def _room(ray: Any, workers: int | None, gpus: float, cpus: float, tasks: int) -> tuple[int, float]:
    """How many actors, and cores for each: Ray would wait for ever for what the cluster does not have.

    Raises:
        InvalidInput: no machine has so many GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max(node.get("GPU", 0.0) for node in nodes)
    if gpus > most:
        raise InvalidInput(f"a machine of this Ray cluster has {most:g} GPUs at most, not {gpus:g}", "gpus")
    cpus = min(cpus, max(node.get("CPU", 1.0) for node in nodes))
    total = sum(node.get("CPU", 0.0) for node in nodes)
    with_gpus = sum(node.get("GPU", 0.0) // gpus for node in nodes) if gpus else float("inf")
    count = min(workers or int(min(total // cpus, with_gpus)), tasks)
    return count, min(cpus, total / count)
