"""Turns the flags for prompts and focus into values."""

from __future__ import annotations

import argparse
from dataclasses import replace

from phs_milvus.contract.errors import ModelMismatch, PhsError
from phs_milvus.contract.types import Focus
from phs_milvus.pointing.prompts import Mask, Prompt, parse_box, parse_point, parse_polygon
from phs_milvus.search.settings import SearchSettings, read_settings

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
        help="paper: as published; robust: what held up best on clean and bad prompts; the flags below change it",
    )
    group.add_argument(
        "--heads", type=_heads, metavar="N", help="attention heads to keep, or 'all' (default: the model's number)"
    )
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


def focus_of(options: argparse.Namespace, settings: SearchSettings | None = None) -> Focus:
    """The focus of the flags; a flag that is missing takes the value of --focus or --settings, else the paper's."""
    if options.focus and settings is not None:
        raise PhsError("--focus and --settings exclude each other: both say how to focus")
    base = getattr(Focus, options.focus)() if options.focus else Focus() if settings is None else settings.focus
    flags = {"heads_on": options.heads, "attention_shift": options.roi, "zoom": options.zoom}
    return replace(base, **{name: value for name, value in flags.items() if value is not None})


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


def _heads(text: str) -> int | str:
    """Reads "3" or "all"; argparse reports a ValueError under the flag's name."""
    return text if text == "all" else int(text)


def _zoom(text: str) -> float | tuple[float, ...]:
    """Reads "2" or "0,2"."""
    try:
        zooms = tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, or several as 0,2, got {text!r}") from None
    return zooms if len(zooms) > 1 else zooms[0]
