"""`phs-milvus export-states`: a collection's states in a file, for a server that scans them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from phs_milvus.cli.connections import add_milvus_flags, open_milvus
from phs_milvus.cli.places import output_file


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    export = commands.add_parser(
        "export-states",
        help="write the states of a collection into a file that a server scans",
        description="Writes the keys and states of all rows into FILE (Arrow IPC), int8, whatever format the rows "
        "have. Then: phs-server --states FILE, which compares queries with every state. Rows that change later are not "
        "seen until the states are exported again and the server is restarted.",
        epilog="Example: phs-milvus export-states --collection photos photos.states && phs-server --states "
        "photos.states",
    )
    export.add_argument("file", metavar="FILE", help="replaced when the new one is complete")
    add_milvus_flags(export)
    export.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.milvus.export_states import export_states

    path = output_file(Path(options.file), "file", _is_arrow)
    with open_milvus(options) as client:
        print(export_states(FocusedCollection.open(client, options.collection), path))
    return 0


def _is_arrow(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"
