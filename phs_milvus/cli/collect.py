"""`phs-milvus ingest` fills a collection, and `phs-milvus info` describes it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from phs_milvus.cli.connections import (
    add_encoder_flags,
    add_milvus_flags,
    address_of,
    is_missing,
    open_encoder,
    open_milvus,
)
from phs_milvus.cli.places import existing_folder
from phs_milvus.contract.errors import InvalidInput, shown

if TYPE_CHECKING:
    from phs_milvus.milvus.collection import FocusedCollection


def add_commands(commands: Any) -> None:
    """Adds the two commands to argparse's subparsers."""
    ingest = commands.add_parser(
        "ingest",
        help="encode a folder of images into a collection",
        description="Walks DIR, encodes every image and stores it under its path relative to DIR. You can run it again "
        "at any time: unchanged files are skipped and changed files are encoded again. Files that cannot be read are "
        "listed and the others stored; the exit status is then 1, as it is if DIR has no image at all. While Milvus "
        "does not answer it is asked again, for up to three minutes.",
    )
    ingest.add_argument("directory", metavar="DIR", help="folder of images, searched recursively")
    ingest.add_argument("--prune", action="store_true", help="delete the rows of files that no longer exist")
    ingest.add_argument("--batch-size", type=int, default=256, help="rows written at a time (default: %(default)s)")
    ingest.add_argument(
        "--state-format",
        choices=["float16", "int8"],
        help="how a new collection holds states: int8, or float16 in about twice the space (default: int8)",
    )
    add_encoder_flags(ingest)
    add_milvus_flags(ingest)
    ingest.set_defaults(run=_ingest)

    info = commands.add_parser(
        "info",
        help="describe the collection and the model",
        description="Prints what is in Milvus and, with --encoder or --model, the model, as JSON.",
    )
    add_encoder_flags(info)
    add_milvus_flags(info)
    info.set_defaults(run=_info)


def _ingest(options: argparse.Namespace) -> int:
    from phs_milvus.ingest.folder import ingest_folder
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.milvus.connection import translated_errors

    existing_folder(options.directory, "DIR")  # before a model is loaded and a collection made
    with open_encoder(options, many=True) as encoder, open_milvus(options, create=True) as client:
        name = options.collection
        with translated_errors("cannot list the collections"):
            exists = client.has_collection(name)
        if exists:
            collection = FocusedCollection.open(client, name)
            _check_state_format(options.state_format, collection)
        else:
            chosen = {"state_format": options.state_format} if options.state_format else {}
            collection = FocusedCollection.create(client, name, encoder.info, **chosen)
        report = ingest_folder(
            options.directory, collection, encoder, prune=options.prune, batch_size=options.batch_size
        )
    print(report)
    if not report.found:
        print(f"phs-milvus: no images under {options.directory}; nothing was stored", file=sys.stderr)
    return 1 if report.failed_count or not report.found else 0


def _check_state_format(wanted: str | None, collection: FocusedCollection) -> None:
    """Raises InvalidInput where a collection that exists is asked for in another format."""
    if wanted not in (None, found := collection.model.state_format):
        raise InvalidInput(
            f"is {wanted}, but collection {collection.name!r} holds {found}; leave it out, or name a new collection",
            "state_format",
        )


def _info(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.milvus.connection import translated_errors

    facts: dict[str, Any] = {}
    if options.model or address_of(options):
        with open_encoder(options) as encoder:
            facts["encoder"] = {**vars(encoder.info), "limits": vars(encoder.info.limits)}
    facts["milvus"] = {"uri": shown(options.milvus), "collections": []}
    if not is_missing(options.milvus):
        with open_milvus(options) as client:
            with translated_errors("cannot list the collections"):
                facts["milvus"]["collections"] = names = client.list_collections()
            if options.collection in names:
                facts["collection"] = FocusedCollection.open(client, options.collection).describe()
    print(json.dumps(facts, indent=2))
    return 0
