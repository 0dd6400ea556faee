"""`phs-milvus attach`: makes a collection that somebody else fills searchable by pointing."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from phs_milvus.cli.connections import add_encoder_flags, add_milvus_address_flags, open_encoder, open_milvus


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    attach = commands.add_parser(
        "attach",
        help="make a collection that you have searchable by pointing",
        description="Encodes the pictures of a collection's rows once and stores their states in a collection beside "
        "it, COLLECTION_phs. COLLECTION itself is only read, whatever its keys, partitions and fields. A row gets a "
        "state if the model gives its picture the embedding that the row has already (cosine .99 or more); if most "
        "differ, the command stops and says so. Run it again at any time, after an interruption or when there are new "
        "rows: only rows without a state of their embedding are encoded. Then: phs-milvus search --collection "
        "COLLECTION ...",
        epilog="Examples: phs-milvus attach products --image-field file --images /data/products; phs-milvus attach "
        'products --images "https://img.example.com/{album}/{file}.jpg"; phs-milvus attach products --image-field url',
    )
    attach.add_argument("collection", metavar="COLLECTION", help="a collection with embeddings of the encoder's model")
    attach.add_argument(
        "--image-field",
        metavar="FIELD",
        help="the field that says where a row's picture is: below --images, or as a whole path or URL "
        "(default: the primary key)",
    )
    attach.add_argument(
        "--images",
        metavar="WHERE",
        help="a folder, or a URL with the names of fields in braces; {id} is the primary key. What is given here and "
        "by --image-field is remembered for searches and for the next time",
    )
    attach.add_argument(
        "--embedding-field", metavar="FIELD", help="the field that holds the embeddings (default: the one there is)"
    )
    attach.add_argument(
        "--state-format",
        choices=["float16", "int8"],
        help="how new states are held: int8, or float16 in twice the space (default: int8)",
    )
    attach.add_argument("--prune", action="store_true", help="delete the states of rows that no longer exist")
    attach.add_argument(
        "--keep-going",
        action="store_true",
        help="go on where most rows differ, or the first pictures are missing; those rows get no state",
    )
    attach.add_argument("--batch-size", type=int, default=256, help="states written at a time (default: %(default)s)")
    attach.add_argument(
        "--undo", action="store_true", help="drop COLLECTION_phs, and do nothing else; COLLECTION is as it was"
    )
    add_encoder_flags(attach)
    add_milvus_address_flags(attach)
    attach.set_defaults(run=_attach)


def _attach(options: argparse.Namespace) -> int:
    from phs_milvus.ingest.backfill import backfill
    from phs_milvus.milvus.collection import FocusedCollection

    if options.undo:
        return _undo(options)
    with open_encoder(options, many=True) as encoder, open_milvus(options) as client:
        collection = FocusedCollection.attach(
            client,
            options.collection,
            embedding_field=options.embedding_field,
            model=encoder.info,
            state_format=options.state_format,
        )
        report = backfill(
            collection,
            encoder,
            options.images,
            image_field=options.image_field,
            prune=options.prune,
            keep_going=options.keep_going,
            batch_size=options.batch_size,
        )
    print(report)
    if report.rows == 0:
        print(f"phs-milvus: collection {options.collection} is empty; nothing was stored", file=sys.stderr)
    return 1 if report.failed_count or report.rows == 0 else 0


def _undo(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.attach import detach

    with open_milvus(options) as client:
        print(f"dropped {detach(client, options.collection)}")
    return 0
