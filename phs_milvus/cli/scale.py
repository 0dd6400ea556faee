"""`phs-milvus scale`: many pictures, by way of Parquet files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from phs_milvus.cli.connections import (
    add_encoder_flags,
    add_milvus_address_flags,
    add_milvus_flags,
    address_of,
    open_encoder,
    open_milvus,
)
from phs_milvus.contract.errors import PhsError

_PARQUET = "files or folders of them, as `scale encode` and `scale export` write them; also s3://... and gs://..."


def add_commands(commands: Any) -> None:
    """Adds the commands to argparse's subparsers."""
    scale = commands.add_parser(
        "scale",
        help="millions of pictures: encode on many machines, load, export, compact",
        description="Encodes pictures into Parquet files, on one machine or by a Ray cluster, and moves rows between "
        "Parquet and Milvus. Every command may be interrupted and run again; docs/SCALE.md has recipes.",
    )
    kinds = scale.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_encode(kinds)
    _add_load(kinds)
    _add_export(kinds)
    _add_compact(kinds)
    _add_swap(kinds)


def _add_encode(kinds: Any) -> None:
    encode = kinds.add_parser(
        "encode",
        help="pictures -> Parquet, by Ray",
        description="Encodes every picture below INPUT into OUTPUT/parts, and lists those that cannot be used in "
        "OUTPUT/errors. Run it again after an interruption: pictures in either are left out. To try the failed ones "
        "again, delete OUTPUT/errors. Needs phs-milvus[ray].",
    )
    encode.add_argument("input", metavar="INPUT", help="folder of pictures; also s3://... and gs://...")
    encode.add_argument("output", metavar="OUTPUT", help="folder to write to; likewise")
    encode.add_argument(
        "--ray", metavar="ADDRESS", help="a Ray cluster, or auto (default: Ray is started here for this command)"
    )
    encode.add_argument("--workers", type=int, metavar="N", help="actors (default: as many as there is room for)")
    encode.add_argument("--gpus", type=float, default=0.0, metavar="G", help="GPUs for each worker (default: 0)")
    encode.add_argument(
        "--cpus", type=float, metavar="C", help="cores for each worker (default: 1; 4 where it runs a model on them)"
    )
    encode.add_argument(
        "--keys",
        nargs="+",
        default=(),
        metavar="PARQUET",
        help="encode only the pictures that these files name",
    )
    encode.add_argument("--rows-per-part", type=int, default=1024, metavar="N", help="default: %(default)s")
    encode.add_argument("--state-format", choices=["float16", "int8"], default="int8", help="default: %(default)s")
    add_encoder_flags(encode)
    encode.set_defaults(run=_encode)


def _add_load(kinds: Any) -> None:
    load = kinds.add_parser(
        "load",
        help="Parquet -> a collection",
        description="Puts rows into a collection, which is made where there is none, then compares both: counts, a "
        "sample of rows, and the recall of the index against exact search. Rows that are there are left alone.",
    )
    load.add_argument("parquet", nargs="+", metavar="PARQUET", help=_PARQUET)
    load.add_argument(
        "--import-to",
        metavar="FOLDER",
        help="by bulk import: a folder (or s3://...) in the storage of the Milvus server, which can be written to from "
        "here (default: rows are sent by batches)",
    )
    load.add_argument(
        "--import-as", metavar="PATH", help="what the server calls that folder (default: the same; without the bucket)"
    )
    load.add_argument("--index", default="AUTOINDEX", metavar="TYPE", help="of a new collection (default: %(default)s)")
    load.add_argument("--sample", type=int, default=200, metavar="N", help="rows to compare (default: %(default)s)")
    add_milvus_flags(load)
    load.set_defaults(run=_load)


def _add_export(kinds: Any) -> None:
    export = kinds.add_parser(
        "export",
        help="a collection -> Parquet",
        description="Writes all rows into OUTPUT/parts, in ascending order of their ids. Run it again after an "
        "interruption: it goes on behind the last row written.",
    )
    export.add_argument("output", metavar="OUTPUT", help="folder to write to; also s3://... and gs://...")
    export.add_argument("--rows-per-part", type=int, default=10_000, metavar="N", help="default: %(default)s")
    add_milvus_flags(export)
    export.set_defaults(run=_export)


def _add_compact(kinds: Any) -> None:
    compact = kinds.add_parser(
        "compact",
        help="float16 states -> int8, in place",
        description="Packs the states of a collection anew, in about half the space, and compares a sample. Of an "
        "attached collection only COLLECTION_phs is written. Nothing else should write to the collection meanwhile.",
    )
    add_milvus_flags(compact)
    compact.set_defaults(run=_compact)


def _add_swap(kinds: Any) -> None:
    swap = kinds.add_parser(
        "swap",
        help="make an alias mean another collection",
        description="Makes ALIAS mean COLLECTION, in one step. Programs that opened the alias before go on with the "
        "collection that it meant then.",
    )
    swap.add_argument("alias", metavar="ALIAS", help="is made where there is none")
    swap.add_argument("collection", metavar="COLLECTION")
    add_milvus_address_flags(swap)
    swap.set_defaults(run=_swap)


def _encode(options: argparse.Namespace) -> int:
    from phs_milvus.scale.encode import encode

    if options.encoder and options.model:
        raise PhsError("--encoder and --model exclude each other: a running server has its model already")
    address = address_of(options)
    cpus = options.cpus or (1.0 if address or options.gpus else 4.0)
    report = encode(
        options.input,
        options.output,
        partial(_opened, argparse.Namespace(encoder=address, model=options.model)),
        keys=options.keys,
        ray_address=options.ray,
        workers=options.workers,
        gpus_per_worker=options.gpus,
        cpus_per_worker=cpus,
        rows_per_part=options.rows_per_part,
        state_format=options.state_format,
        progress=_tell,
    )
    print(report)
    if not report.found:
        print(f"phs-milvus: no pictures below {options.input}", file=sys.stderr)
    return 1 if report.failed or not report.found else 0


@contextlib.contextmanager
def _opened(options: argparse.Namespace) -> Iterator[Any]:
    with open_encoder(options, many=True) as encoder:
        yield encoder


def _load(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.milvus.connection import translated_errors
    from phs_milvus.scale.load import load
    from phs_milvus.scale.parts import model_of, parts_at
    from phs_milvus.scale.verify import verify

    model = model_of(parts_at(options.parquet))
    with open_milvus(options, create=True) as client:
        with translated_errors("cannot list the collections"):
            exists = client.has_collection(options.collection)
        collection = (
            FocusedCollection.open(client, options.collection)
            if exists
            else FocusedCollection.create(
                client, options.collection, model, index_type=options.index, state_format=model.state_format
            )
        )
        report = load(
            options.parquet,
            collection,
            import_to=options.import_to,
            import_as=options.import_as,
            progress=_tell,
        )
        print(report)
        found = verify(options.parquet, collection, sample=options.sample)
    print(found)
    return 0 if found.good else 1


def _export(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.scale.export import export

    with open_milvus(options) as client:
        collection = FocusedCollection.open(client, options.collection)
        print(export(collection, options.output, rows_per_part=options.rows_per_part, progress=_tell))
    return 0


def _compact(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.scale.compact import compact

    with open_milvus(options) as client:
        report = compact(FocusedCollection.open(client, options.collection), progress=_tell)
    print(report)
    return 0 if report.good else 1


def _swap(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.aliases import swap_alias

    with open_milvus(options) as client:
        before = swap_alias(client, options.alias, options.collection)
    print(f"{options.alias} means {options.collection}" + (f", and meant {before} before" if before else ""))
    return 0


def _tell(report: object) -> None:
    """One moving line on a terminal; nothing in a log, which gets the report at the end."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{str(report).splitlines()[0][:150]}", end="", file=sys.stderr, flush=True)
