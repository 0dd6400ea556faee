"""Turns the flags for prompts and focus into values."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from phs_milvus.contract.errors import ModelMismatch, PhsError, shown
from phs_milvus.contract.types import Focus
from phs_milvus.pointing.prompts import Mask, Prompt, parse_box, parse_point, parse_polygon
from phs_milvus.search.scores import Score
from phs_milvus.search.settings import SearchSettings, read_settings

if TYPE_CHECKING:
    from phs_milvus.search.queries import Query

_PROMPT_HELP = """pixels of the upright image, origin top-left; repeat or combine prompts for their union;
write --box=-4,10,50,60 where the first number is negative"""


def add_prompt_flags(command: argparse.ArgumentParser) -> None:
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
        help="paper: as published, ranked by query_db; robust: what held up best on clean and bad prompts of a small "
        "model; the flags below change it",
    )
    group.add_argument(
        "--heads", type=heads_of, metavar="N", help="attention heads to keep, or 'all' (default: the model's number)"
    )
    group.add_argument(
        "--roi",
        type=float,
        metavar="SHARE",
        help="0 to 1: move this share of the last layer's attention onto the prompt (default: 1; published: 0)",
    )
    group.add_argument(
        "--zoom",
        type=_zoom,
        metavar="F[,F...]",
        help="look at the crop around the prompt, grown by this factor, for example 1.25; 0 is the whole image; "
        "several, as 0,2, are averaged by search (default: 0)",
    )


def add_example_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("several examples", "each a picture, and a box in it; may be repeated")
    group.add_argument(
        "--like", action="append", default=[], metavar="IMAGE:X0,Y0,X1,Y1", help="another example of the thing"
    )
    group.add_argument(
        "--unlike", action="append", default=[], metavar="IMAGE:X0,Y0,X1,Y1", help="an example of what it is not"
    )


def example_of(text: str) -> Query:
    """Reads IMAGE:X0,Y0,X1,Y1.

    Raises:
        PhsError: there is no box.
    """
    from phs_milvus.search.queries import Query

    image, colon, box = text.rpartition(":")
    if not colon or not image:
        raise PhsError(f"an example is IMAGE:X0,Y0,X1,Y1, got {shown(text)!r}")
    return Query(image, parse_box(box))


def prompt_of(options: argparse.Namespace) -> Prompt | None:
    """The union of all prompt flags; None without any."""
    prompts: list[Prompt] = [
        *map(parse_box, options.box),
        *map(parse_point, options.point),
        *map(parse_polygon, options.polygon),
        *map(Mask, options.mask),
    ]
    if not prompts:
        return None
    return prompts[0] if len(prompts) == 1 else prompts


def focus_of(options: argparse.Namespace, settings: SearchSettings | None, default: Focus) -> Focus:
    """The focus of the flags; a flag that is missing takes the value of --focus or --settings, else of `default`."""
    if options.focus and settings is not None:
        raise PhsError("--focus and --settings exclude each other: both say how to focus")
    base = getattr(Focus, options.focus)() if options.focus else default if settings is None else settings.focus
    flags = {
        "heads_on": options.heads,
        "attention_shift": options.roi,
        "zoom": options.zoom,
        "ann_heads": options.ann_heads,
    }
    return replace(base, **{name: value for name, value in flags.items() if value is not None})


def score_of(options: argparse.Namespace, settings: SearchSettings | None) -> Score:
    """The score to rank by: of the flags, else of --settings or --focus, else the default.

    Raises:
        PhsError: --no-rerank with a score that needs it.
    """
    if options.no_rerank and options.score not in (None, "ann"):
        raise PhsError(f"--no-rerank and --score {options.score} exclude each other: that score is made by reranking")
    if options.no_rerank:
        return "ann"
    score: Score | None = options.score
    return score or (
        "query_db" if options.focus == "paper" else SearchSettings().score if settings is None else settings.score
    )


def settings_of(options: argparse.Namespace, fingerprint: str) -> SearchSettings | None:
    """The settings in the file of --settings; None without the flag.

    Raises:
        ModelMismatch: they were tuned for another model.
    """
    if options.settings is None:
        return None
    settings = read_settings(options.settings)
    if settings.fingerprint not in ("", fingerprint):
        raise ModelMismatch(
            f"{options.settings} was tuned for the model with fingerprint {settings.fingerprint[:12]}, the server runs "
            f"{fingerprint[:12]}; run phs-milvus tune with this model"
        )
    return settings


def heads_of(text: str) -> int | str:
    """Reads "3" or "all"; argparse reports a ValueError under the flag's name."""
    return text if text == "all" else int(text)


def _zoom(text: str) -> float | tuple[float, ...]:
    """Reads "2" or "0,2"."""
    try:
        zooms = tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, or several as 0,2, got {text!r}") from None
    return zooms if len(zooms) > 1 else zooms[0]
