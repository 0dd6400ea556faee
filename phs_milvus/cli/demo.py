"""`phs-milvus demo`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from phs_milvus.cli.connections import add_encoder_flags, address_of, open_encoder, open_milvus
from phs_milvus.cli.places import existing_folder, output_folder
from phs_milvus.contract.errors import PhsError

_AFTERWARDS = """
Open {page} in a browser, or look at {sheet} and its neighbours.
Each query was searched with the whole picture, and twice with the part that is outlined.{truth}{model}

Point at things yourself, in a browser:
  {web}

On your own photos:
{commands}"""
_TRUTH = "\nA green frame says the thing pointed at is in the picture."
_BUNDLED = "\nThe bundled model is a small one for trying things out, not for photos."


def add_commands(commands: Any) -> None:
    """Adds the command to argparse's subparsers."""
    demo = commands.add_parser(
        "demo",
        help="see it work on bundled pictures, or on yours",
        description="Starts an embedding server and Milvus Lite, ingests pictures, searches each query with and "
        "without a prompt, and writes a web page that shows both. Your own pictures are served with "
        "facebook/dinov2-base unless --model says otherwise.",
    )
    demo.add_argument("--output", default="demo-output", metavar="DIR", help="where to write (default: %(default)s)")
    demo.add_argument("--images", metavar="DIR", help="your own pictures instead of the bundled scenes")
    demo.add_argument("--web", action="store_true", help="then serve the page to point in, and open it")
    add_encoder_flags(demo, "the bundled one; with --images facebook/dinov2-base")
    demo.set_defaults(run=_demo, token="")


def _demo(options: argparse.Namespace) -> int:
    from phs_milvus.cli.page import serve_page
    from phs_milvus.demo.page import next_commands, program
    from phs_milvus.demo.run import BUNDLED_MODEL, BUNDLED_SCENES, PHOTO_MODEL, is_demo, run_demo

    if not options.images and not BUNDLED_SCENES.is_dir():
        raise PhsError(
            "the demo's pictures and model are not part of the package: run `make demo` in a clone of phs_milvus, "
            "or pass --images DIR, and --model MODEL for another than facebook/dinov2-base"
        )
    images = existing_folder(options.images, "--images") if options.images is not None else None
    if not address_of(options):
        options.model = options.model or (PHOTO_MODEL if options.images else str(BUNDLED_MODEL))
    output = output_folder(Path(options.output), "--output", is_demo)
    options.milvus = str(output / "demo.db")
    with open_encoder(options, many=True) as encoder, open_milvus(options, create=True) as client:
        page = run_demo(encoder, client, output, images)
    truth = "" if options.images else _TRUTH
    model = _BUNDLED if options.model == str(BUNDLED_MODEL) else ""
    commands = "\n".join(f"  {command}" for command in next_commands())
    flags = ["--milvus", options.milvus, "--collection", "demo", "--images", str(images or BUNDLED_SCENES)]
    flags += ["--encoder", options.encoder] if options.encoder else ["--model", options.model] if options.model else []
    web = f"{program()} web {shlex.join(flags)}"
    sheet = output / "query-1.png"
    print(_AFTERWARDS.format(page=page, sheet=sheet, truth=truth, model=model, web=web, commands=commands))
    return serve_page([*flags, "--open"]) if options.web else 0
