"""The `phs-milvus` command: each module adds its commands to the parser, calls the library, and prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from phs_milvus.cli import collect, demo, evaluate, search, serve
from phs_milvus.contract.errors import PhsError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `phs-milvus`. Exit status: 0 done, 1 failed or some files failed, 2 wrong usage, 130 Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except PhsError as error:
        field = getattr(error, "field", "")
        print(f"phs-milvus: {field + ': ' if field else ''}{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        again = "to start over" if options.run.__module__.endswith(".demo") else "to continue"
        print(f"\nphs-milvus: interrupted; run the same command again {again}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output ended early, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="phs-milvus",
        description="Search a Milvus image collection by the thing you point at.",
        epilog="Start: phs-milvus ingest ~/photos, then phs-milvus search photo.jpg --box 40,60,180,220 --save out.png",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (collect, search, demo, evaluate, serve):
        module.add_commands(commands)
    return parser


__all__ = ["main"]
