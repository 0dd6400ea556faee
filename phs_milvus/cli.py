"""The `phs-milvus` command: parses, calls the library, prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phs_milvus import cli_eval
from phs_milvus.errors import PhsError
from phs_milvus.prompts import Prompt

DEFAULT_MILVUS = "./phs_milvus.db"
DEFAULT_COLLECTION = "images"
_PROMPT_HELP = "pixels of the upright image, origin top-left; repeat or combine prompts for their union"


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
        print("\nphs-milvus: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


# --- commands ---------------------------------------------------------------------------------------------------------


def _ingest(options: argparse.Namespace) -> int:
    from phs_milvus.ingest import ingest_folder

    with _encoder(options) as encoder, _client(options) as client:
        collection = _open_or_create(client, options.collection, encoder.info)
        report = ingest_folder(
            options.directory, collection, encoder, prune=options.prune, batch_size=options.batch_size
        )
    print(report)
    return 1 if report.failed_count else 0


def _search(options: argparse.Namespace) -> int:
    from phs_milvus.collection import FocusedCollection
    from phs_milvus.search import FocusedSearch, StoredImage

    prompt = _prompt(options)
    with _encoder(options) as encoder, _client(options) as client:
        collection = FocusedCollection.open(client, options.collection)
        search = FocusedSearch(collection, encoder, image_root=options.root)
        settings = _settings(options, encoder.info.fingerprint)
        result = search.search(
            StoredImage(options.image) if options.stored else options.image,
            prompt,
            limit=options.limit,
            candidates=options.candidates or (settings and settings.candidates),
            filter=options.filter,
            output_fields=_output_fields(options),
            rerank=not options.no_rerank,
            focus=_focus(options, settings),
        )
        if options.save:
            _save_search_sheet(options, search, prompt, result)
    if options.json:
        print(json.dumps(result.rows(), indent=2, default=str))
    else:
        print(result)
        print(
            f"\nencode {result.encode_ms:.0f} ms, Milvus {result.ann_ms:.0f} ms, rerank {result.rerank_ms:.0f} ms",
            file=sys.stderr,
        )
    return 0


def _explain(options: argparse.Namespace) -> int:
    prompt = _prompt(options)
    with _encoder(options) as encoder:
        explanation = encoder.explain(options.image, prompt, focus=_focus(options))
    if options.json:
        scores = explanation.head_scores
        print(
            json.dumps(
                {
                    "head_scores": None if scores is None else scores.tolist(),
                    "head_weights": explanation.head_weights.tolist(),
                    "selected_heads": explanation.selected_heads,
                    "attention": explanation.attention.tolist(),
                }
            )
        )
    else:
        for head, weight in enumerate(explanation.head_weights):
            share = "" if explanation.head_scores is None else f"{explanation.head_scores[head]:7.2%} on the prompt  "
            print(f"head {head:>2}  {share}weight {weight:.2f}")
    if options.save:
        from phs_milvus.contact_sheet import heads_sheet

        heads_sheet(options.image, prompt, explanation).save(options.save)
        print(f"saved {options.save}", file=sys.stderr)
    return 0


def _info(options: argparse.Namespace) -> int:
    from phs_milvus.collection import FocusedCollection

    facts: dict[str, Any] = {}
    if options.encoder or options.model:
        with _encoder(options) as encoder:
            facts["encoder"] = {**vars(encoder.info), "limits": vars(encoder.info.limits)}
    with _client(options) as client:
        names = client.list_collections()
        facts["milvus"] = {"uri": options.milvus, "collections": names}
        if options.collection in names:
            facts["collection"] = FocusedCollection.open(client, options.collection).describe()
    print(json.dumps(facts, indent=2))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from phs_milvus.demo.run import BUNDLED_MODEL, PHOTO_MODEL, run_demo

    if not options.encoder:
        options.model = options.model or (PHOTO_MODEL if options.images else str(BUNDLED_MODEL))
    output = Path(options.output)
    options.milvus = str(output / "demo.db")
    with _encoder(options) as encoder, _client(options) as client:
        page = run_demo(encoder, client, output, Path(options.images) if options.images else None)
    print(_AFTER_DEMO.format(page=page, sheet=output / "query-1.png"))
    return 0


def _serve(options: argparse.Namespace) -> int:
    app = _server_package()
    from phs_server.config import from_namespace

    return app.run(from_namespace(options))


_AFTER_DEMO = """
Open {page} in a browser, or look at {sheet} and its neighbours.
Each query was searched twice: with the whole picture, and with the part that is outlined. A green frame says the
thing pointed at is in the picture. The bundled model is a small one for trying things out, not for photos.

On your own photos:
  phs-milvus ingest ~/Pictures --model facebook/dinov2-base
  phs-milvus search photo.jpg --box 40,60,180,220 --save hits.png --model facebook/dinov2-base
  phs-milvus explain photo.jpg --box 40,60,180,220 --save heads.png --model facebook/dinov2-base"""


# --- the two ends -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _encoder(options: argparse.Namespace) -> Iterator[Any]:
    """The embedding server named by --encoder, or one started here for the time of this command."""
    from phs_milvus.client import Encoder

    if options.encoder:
        if options.model:
            raise PhsError("--encoder and --model exclude each other: a running server has its model already")
        with Encoder(options.encoder) as encoder:
            encoder.info  # noqa: B018  fails here, before any work, if the server is not there
            yield encoder
        return
    app = _server_package()
    from phs_server.config import parse

    arguments = ["--port", "0"] + (["--model", options.model] if options.model else [])
    settings = parse(arguments)
    print(f"starting an embedding server with {settings.model} ...", file=sys.stderr)
    with app.ServerThread(settings) as server, Encoder(server.address) as encoder:
        yield encoder


def _server_package() -> Any:
    """phs_server.app, which needs torch; imported only by commands that run a model here."""
    try:
        from phs_server import app
    except ImportError as error:
        raise PhsError(
            f"running a model here needs the server extra ({error}): pip install 'phs-milvus[server]', "
            "or pass --encoder HOST:PORT of a running phs-server"
        ) from error
    return app


@contextlib.contextmanager
def _client(options: argparse.Namespace) -> Iterator[Any]:
    from phs_milvus.milvus import close, connect

    client = connect(options.milvus, options.token)
    try:
        yield client
    finally:
        close(client)


def _open_or_create(client: Any, name: str, info: Any) -> Any:
    from phs_milvus.collection import FocusedCollection

    if client.has_collection(name):
        return FocusedCollection.open(client, name)
    return FocusedCollection.create(client, name, info)


# --- options to values ------------------------------------------------------------------------------------------------


def _prompt(options: argparse.Namespace) -> Prompt | None:
    """The union of all prompt flags; None where there is none."""
    from phs_milvus.prompts import Mask, parse_box, parse_point, parse_polygon

    prompts: list[Prompt] = [
        *map(parse_box, options.box),
        *map(parse_point, options.point),
        *map(parse_polygon, options.polygon),
        *map(Mask, options.mask),
    ]
    if not prompts:
        return None
    return prompts[0] if len(prompts) == 1 else prompts


def _focus(options: argparse.Namespace, settings: Any = None) -> Any:
    """The focus of the flags; what they leave out is as in the preset or the settings file, else as published."""
    from phs_milvus.types import Focus

    if options.focus and settings is not None:
        raise PhsError("--focus and --settings exclude each other: both say how to focus")
    base = getattr(Focus, options.focus)() if options.focus else Focus() if settings is None else settings.focus
    given = {name: getattr(options, name) for name in ("heads", "roi", "zoom") if getattr(options, name) is not None}
    return replace(base, **given)


def _settings(options: argparse.Namespace, fingerprint: str) -> Any:
    """The file of --settings, which must be for the model in use."""
    from phs_milvus.errors import ModelMismatch
    from phs_milvus.settings import read_settings

    if options.settings is None:
        return None
    settings = read_settings(options.settings)
    if settings.fingerprint not in ("", fingerprint):
        raise ModelMismatch(
            f"{options.settings} was tuned for the model with fingerprint {settings.fingerprint[:12]}, the server runs "
            f"{fingerprint[:12]}; run phs-milvus tune with this model"
        )
    return settings


def _zoom(text: str) -> float | tuple[float, ...]:
    """Reads "2" or "0,2"; argparse reports a ValueError under the flag's name."""
    zooms = tuple(map(float, text.split(",")))
    return zooms if len(zooms) > 1 else zooms[0]


def _output_fields(options: argparse.Namespace) -> list[str]:
    fields = [name for name in options.fields.split(",") if name]
    if options.save and "path" not in fields:
        fields.append("path")
    return fields


def _save_search_sheet(options: argparse.Namespace, search: Any, prompt: Prompt | None, result: Any) -> None:
    from phs_milvus.contact_sheet import search_sheet
    from phs_milvus.search import StoredImage

    def locate(hit: Any) -> str | Path | None:
        return Path(options.root) / str(hit.id) if options.root else hit.fields.get("path")

    image = search.locate(StoredImage(options.image)) if options.stored else options.image
    search_sheet(image, prompt, result.hits, locate).save(options.save)
    print(f"saved {options.save}", file=sys.stderr)


# --- the command line -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="phs-milvus",
        description="Search a Milvus image collection by the thing you point at.",
        epilog="Start: phs-milvus ingest ~/photos, then phs-milvus search photo.jpg --box 40,60,180,220 --save out.png",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    ingest = _command(
        commands,
        "ingest",
        _ingest,
        "encode a folder of images into a collection",
        "Walks DIR, encodes every image and stores it under its path relative to DIR. Run it again any time: unchanged "
        "files are skipped, changed ones encoded anew. Files that cannot be read are listed, the rest is stored, and "
        "the exit status is 1.",
    )
    ingest.add_argument("directory", metavar="DIR", help="folder of images, searched recursively")
    ingest.add_argument("--prune", action="store_true", help="remove rows whose file is gone")
    ingest.add_argument("--batch-size", type=int, default=256, help="files handled at a time (default: %(default)s)")
    _add_encoder(ingest)
    _add_milvus(ingest)

    search = _command(
        commands,
        "search",
        _search,
        "find pictures that contain what you point at",
        "Finds the pictures of a collection that contain the part of IMAGE you point at. Without a prompt the whole "
        "image is the query.",
    )
    search.add_argument("image", metavar="IMAGE", help="an image file, or with --stored the id of a row")
    search.add_argument("--stored", action="store_true", help="IMAGE is the id of a row in the collection")
    search.add_argument("--root", metavar="DIR", help="folder the ids are relative to, where it has moved since ingest")
    _add_prompt(search)
    search.add_argument("--limit", type=int, default=10, help="hits to return (default: %(default)s)")
    search.add_argument(
        "--candidates", type=int, help="rows the reranking looks at (default: 10 x limit, at least 200)"
    )
    search.add_argument("--filter", default="", metavar="EXPR", help='Milvus expression, for example "width > 640"')
    search.add_argument("--fields", default="", metavar="A,B", help="fields to return with each hit")
    search.add_argument("--no-rerank", action="store_true", help="stop after the nearest-neighbour search")
    search.add_argument("--settings", metavar="FILE", help="focus and candidates as phs-milvus tune chose them")
    search.add_argument("--json", action="store_true", help="print rows as JSON")
    search.add_argument("--save", metavar="OUT.png", help="draw the query and the hits on a contact sheet")
    _add_encoder(search)
    _add_milvus(search)

    explain = _command(
        commands,
        "explain",
        _explain,
        "show what each attention head looks at",
        "Prints each head's share of attention on the prompt and the heads it selects.",
    )
    explain.add_argument("image", metavar="IMAGE")
    _add_prompt(explain)
    explain.add_argument("--json", action="store_true", help="print scores, weights and attention grids as JSON")
    explain.add_argument("--save", metavar="OUT.png", help="draw the heads' attention over the image")
    _add_encoder(explain)

    info = _command(
        commands,
        "info",
        _info,
        "describe the collection and the model",
        "Prints what is in Milvus and, with --encoder or --model, the model, as JSON.",
    )
    _add_encoder(info)
    _add_milvus(info)

    demo = _command(
        commands,
        "demo",
        _demo,
        "see it work on bundled pictures, or on yours",
        "Starts an embedding server and Milvus Lite, ingests pictures, searches each query with and without a prompt, "
        "and writes a web page that shows both.",
    )
    demo.add_argument("--output", default="demo-output", metavar="DIR", help="where to write (default: %(default)s)")
    demo.add_argument("--images", metavar="DIR", help="your own pictures instead of the bundled scenes")
    _add_encoder(demo)
    demo.set_defaults(token="")

    cli_eval.add_commands(commands, _encoder)

    serve = _command(
        commands,
        "serve",
        _serve,
        "run the embedding server (the same as phs-server)",
        "Runs the embedding server in the foreground. `phs-server --help` explains its flags.",
    )
    with contextlib.suppress(ImportError):
        from phs_server.config import add_flags

        add_flags(serve)
    return parser


def _command(commands: Any, name: str, run: Any, help: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=description)
    command.set_defaults(run=run)
    return command


def _add_encoder(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("embedding server")
    group.add_argument(
        "--encoder",
        metavar="HOST:PORT",
        default=os.environ.get("PHS_ENCODER"),
        help="a running phs-server; without it one is started here for this command [PHS_ENCODER]",
    )
    group.add_argument(
        "--model",
        metavar="ID",
        help="model for a server started here: a Hugging Face id or a directory (default: facebook/dinov2-base) "
        "[PHS_MODEL]",
    )


def _add_milvus(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("Milvus")
    group.add_argument(
        "--milvus",
        metavar="URI",
        default=os.environ.get("PHS_MILVUS", DEFAULT_MILVUS),
        help="a Milvus Lite path ending in .db, or http://host:19530 (default: %(default)s) [PHS_MILVUS]",
    )
    group.add_argument(
        "--token",
        default=os.environ.get("PHS_MILVUS_TOKEN", ""),
        help="of the Milvus server [PHS_MILVUS_TOKEN]",
    )
    group.add_argument("--collection", default=DEFAULT_COLLECTION, help="(default: %(default)s)")


def _add_prompt(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what you point at", _PROMPT_HELP)
    group.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1")
    group.add_argument(
        "--point",
        action="append",
        default=[],
        metavar="X,Y[,RADIUS[,LABEL]]",
        help="label 0 takes its disc away",
    )
    group.add_argument("--polygon", action="append", default=[], metavar='"X,Y X,Y X,Y"')
    group.add_argument("--mask", action="append", default=[], metavar="MASK.png", help="white is inside")
    group.add_argument(
        "--focus",
        choices=("paper", "robust"),
        help="paper: as published; robust: what held up best on clean and bad prompts; the flags below change it",
    )
    group.add_argument("--heads", type=int, metavar="N", help="attention heads to keep (default: the model's)")
    group.add_argument(
        "--roi",
        type=float,
        metavar="SHARE",
        help="0 to 1: move this share of the last layer's attention onto the prompt (default: 0, as published)",
    )
    group.add_argument(
        "--zoom",
        type=_zoom,
        metavar="F[,F...]",
        help="look at the crop around the prompt, grown by this factor, for example 1.25; 0 is the whole image; "
        "several, as 0,2, are averaged by search (default: 0)",
    )


__all__ = ["main"]
