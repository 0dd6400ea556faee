"""`phs-milvus search` and `phs-milvus explain`: search by a part of an image, and show how the model sees it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phs_milvus.cli.connections import add_encoder_flags, add_milvus_flags, open_encoder, open_milvus
from phs_milvus.cli.places import existing_folder, not_the_same, output_file
from phs_milvus.cli.pointing import (
    add_example_flags,
    add_prompt_flags,
    example_of,
    focus_of,
    heads_of,
    prompt_of,
    score_of,
    settings_of,
)
from phs_milvus.contract.errors import ImageError, InvalidInput, shown
from phs_milvus.contract.images import ImageSource
from phs_milvus.contract.location import LocateTarget
from phs_milvus.contract.types import Explanation, Focus
from phs_milvus.milvus.options import CONSISTENCY_LEVELS
from phs_milvus.search.scores import SCORES
from phs_milvus.search.settings import SearchSettings

if TYPE_CHECKING:
    from phs_milvus.milvus.collection import FocusedCollection


def add_commands(commands: Any) -> None:
    """Adds the two commands to argparse's subparsers."""
    search = commands.add_parser(
        "search",
        help="find pictures that contain what you point at",
        description="Finds the pictures of a collection that contain the part of IMAGE you point at. Without a prompt "
        "the whole image is the query.",
    )
    search.add_argument("image", metavar="IMAGE", help="an image file, or with --stored the id of a row")
    search.add_argument("--stored", action="store_true", help="IMAGE is the id of a row in the collection")
    search.add_argument("--root", metavar="DIR", help="folder the ids are relative to, where it has moved since ingest")
    add_prompt_flags(search)
    add_example_flags(search)
    search.add_argument("--limit", type=int, default=10, help="hits to return (default: %(default)s)")
    search.add_argument(
        "--score",
        choices=SCORES,
        help="what hits are ranked by: ann, of the nearest-neighbour search; query_db, of reranking; blend, their "
        "mean (default: blend)",
    )
    search.add_argument("--min-score", type=float, metavar="S", help="leave hits out that score less, -1 to 1")
    search.add_argument(
        "--ann-heads",
        type=heads_of,
        metavar="N",
        help="attention heads to keep in the nearest-neighbour search (default: all)",
    )
    search.add_argument("--candidates", type=int, help="number of rows to rerank (default: 10 x limit, at least 200)")
    search.add_argument("--exclude-query", action="store_true", help="leave out rows whose file is the query's own")
    search.add_argument("--filter", default="", metavar="EXPR", help='Milvus expression, for example "width > 640"')
    search.add_argument(
        "--fields", default="", metavar="A,B", help='fields to return with each hit; "*" for all but vectors'
    )
    search.add_argument("--no-rerank", action="store_true", help="the same as --score ann")
    search.add_argument("--locate", action="store_true", help="say where in each hit the thing is, as boxes")
    search.add_argument(
        "--localize",
        type=int,
        metavar="N",
        help="look into the N best rows, and rank them by what is found there too; twice --limit is a good number",
    )
    search.add_argument(
        "--images",
        metavar="WHERE",
        help="where the pictures of rows are, for --locate and --localize: a folder, or a URL with {id} in it "
        "(default: --root, or where ingest found them)",
    )
    search.add_argument(
        "--boxes",
        type=int,
        default=LocateTarget.limit,
        metavar="N",
        help="boxes in a hit at most (default: %(default)s)",
    )
    search.add_argument("--save-boxes", metavar="OUT.json", help="write the boxes as a COCO file")
    search.add_argument("--settings", metavar="FILE", help="focus, score and candidates as phs-milvus tune chose them")
    search.add_argument("--json", action="store_true", help="print rows as JSON")
    search.add_argument("--save", metavar="OUT.png", help="draw the query and the hits on a contact sheet")
    add_encoder_flags(search)
    _add_milvus_options(add_milvus_flags(search))
    search.set_defaults(run=_search)

    explain = commands.add_parser(
        "explain",
        help="show what each attention head attends to",
        description="Prints each head's share of attention on the prompt and the heads it selects, for each zoom.",
    )
    explain.add_argument("image", metavar="IMAGE")
    add_prompt_flags(explain)
    explain.add_argument("--settings", metavar="FILE", help="focus as phs-milvus tune chose it")
    explain.add_argument(
        "--json",
        action="store_true",
        help="print scores, weights and attention grids as JSON; a list where --zoom has several values",
    )
    explain.add_argument("--save", metavar="OUT.png", help="draw the heads' attention over the image")
    add_encoder_flags(explain)
    explain.set_defaults(run=_explain, ann_heads=None)  # a matter of searching


def _add_milvus_options(group: Any) -> None:
    """How Milvus is to search: by the names of MilvusClient.search, shortened."""
    group.add_argument(
        "--partition", action="append", metavar="NAME", help="search this partition only; may be given several times"
    )
    group.add_argument(
        "--consistency",
        type=str.capitalize,
        choices=CONSISTENCY_LEVELS,
        metavar="LEVEL",
        help="strong finds what was written a moment ago, and takes about 0.2 s more on a server; session, bounded and "
        "eventually do not wait (default: the collection's own level; strong where nothing is found)",
    )
    group.add_argument(
        "--group-by", metavar="FIELD", help="one hit for each value of a field of the schema (Milvus 2.4 or later)"
    )
    group.add_argument(
        "--search-params",
        type=_params_of,
        metavar="JSON",
        help="""parameters of the index, for example '{"ef": 4000}' for HNSW or '{"nprobe": 64}' for IVF: higher finds
        more of the nearest rows, and takes longer""",
    )


def _params_of(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"""{text} is no JSON object such as '{{"ef": 4000}}'""")
    return found


def _search(options: argparse.Namespace) -> int:
    from phs_milvus.milvus.collection import FocusedCollection
    from phs_milvus.search.coco import is_boxes, save_boxes
    from phs_milvus.search.focused import FocusedSearch
    from phs_milvus.search.queries import Query, StoredImage
    from phs_milvus.search.sources import finder

    prompt = prompt_of(options)
    like, unlike = ([example_of(text) for text in texts] for texts in (options.like, options.unlike))
    not_the_same(options.save, options.image, "save")
    if options.save_boxes:
        output_file(Path(options.save_boxes), "save_boxes", is_boxes)
        not_the_same(options.save_boxes, options.save or "", "save_boxes")
    if options.save:
        existing_folder(str(Path(options.save).parent), "save")
    # Before anything is searched: a folder that is not there would be noticed last.
    find: Callable[[Any], ImageSource | None] | None = finder(options.images) if options.images else None
    with open_encoder(options) as encoder, open_milvus(options) as client:
        collection = FocusedCollection.open(client, options.collection)
        search = FocusedSearch(collection, encoder, image_root=options.root)
        stored = StoredImage(_id_of(options.image, collection)) if options.stored else None
        settings = settings_of(options, encoder.info.fingerprint)
        result = search.search(
            [Query(stored or options.image, prompt), *like],
            unlike=unlike,
            limit=options.limit,
            candidates=_candidates(options, settings),
            filter=options.filter,
            output_fields=_output_fields(options),
            score=score_of(options, settings),
            min_score=_min_score(options, settings),
            exclude_query=options.exclude_query,
            localize=options.localize,
            images=options.images,
            boxes=options.boxes,
            focus=focus_of(options, settings, Focus()),
            partition_names=options.partition,
            search_params=options.search_params,
            group_by_field=options.group_by,
            consistency_level=options.consistency,
            timeout=options.timeout,
        )
        if (options.locate or options.save_boxes) and not options.localize:
            result = result.locate(options.images, boxes=options.boxes)
        image = search.file_of(stored) if stored else options.image
        find = find or search.pictures_of([hit.id for hit in result] if options.save else [])
    if options.json:
        print(json.dumps(result.rows(), indent=2, default=str))
    else:
        print(result)
        times = f"encode {result.encode_ms:.0f} ms, Milvus {result.ann_ms:.0f} ms, rerank {result.rerank_ms:.0f} ms"
        times += f", locate {result.locate_ms:.0f} ms" if result.locate_ms else ""
        print(f"\n{times}", file=sys.stderr)
    if result.without_state:
        print(
            f"{result.without_state} candidate(s) have no state yet and are ranked by the ANN score alone; phs-milvus "
            f"attach {options.collection} makes the states of new rows",
            file=sys.stderr,
        )
    lost = [hit for hit in result if hit.location_error]
    if lost:
        print(f"{len(lost)} hit(s) could not be looked into; the first: {lost[0].location_error}", file=sys.stderr)
    if options.save_boxes:
        save_boxes(result.hits, options.save_boxes)
        print(f"saved {options.save_boxes}", file=sys.stderr)
    if options.save:
        from phs_milvus.search.contact_sheet import save, search_sheet

        save(search_sheet(image, prompt, result.hits, lambda hit: _if_there(find, hit.id)), options.save)
    return 0


def _candidates(options: argparse.Namespace, settings: SearchSettings | None) -> int | None:
    """--candidates if given, else those of the settings, raised to --limit where they are fewer."""
    from phs_milvus.search.focused import MIN_CANDIDATES

    if options.candidates is not None or settings is None or settings.candidates is None:
        return options.candidates
    return max(settings.candidates, options.limit, MIN_CANDIDATES)


def _min_score(options: argparse.Namespace, settings: SearchSettings | None) -> float | None:
    """--min-score if given, else that of the settings."""
    given: float | None = options.min_score
    return settings.min_score if given is None and settings is not None else given


def _explain(options: argparse.Namespace) -> int:
    from phs_milvus.search.zooms import used_zooms

    prompt = prompt_of(options)
    not_the_same(options.save, options.image, "save")
    with open_encoder(options) as encoder:
        # Without the shift, which would show the prompt alone and selects no other heads.
        focus = focus_of(options, settings_of(options, encoder.info.fingerprint), Focus.paper())
        explanations = {
            _zoom_title(single.single_zoom): encoder.explain(options.image, prompt, focus=single)
            for single in used_zooms(prompt, focus)
        }
    if options.json:
        facts = [_facts(explanation) for explanation in explanations.values()]
        print(json.dumps(facts if len(facts) > 1 else facts[0]))
    else:
        for title, explanation in explanations.items():
            if len(explanations) > 1:
                print(title)
            _print_heads(explanation)
    if options.save:
        from phs_milvus.search.contact_sheet import heads_sheet, save

        save(heads_sheet(options.image, prompt, explanations), options.save)
    return 0


def _zoom_title(zoom: float) -> str:
    return f"zoom {zoom:g}" if zoom else "whole image"


def _facts(explanation: Explanation) -> dict[str, Any]:
    scores = explanation.head_scores
    return {
        "region": explanation.region,
        "head_scores": None if scores is None else scores.tolist(),
        "head_weights": explanation.head_weights.tolist(),
        "selected_heads": explanation.selected_heads,
        "attention": explanation.attention.tolist(),
    }


def _print_heads(explanation: Explanation) -> None:
    scores = explanation.head_scores
    for head, weight in enumerate(explanation.head_weights):
        share = "" if scores is None else f"{scores[head]:7.2%} on the prompt  "
        print(f"head {head:>2}  {share}weight {weight:.2f}")
    if scores is not None:
        heads, selected = len(scores), len(explanation.selected_heads)
        print(f"{selected} of {heads} heads selected; each weighs {heads / selected:g}, the others 0")


def _output_fields(options: argparse.Namespace) -> list[str]:
    return [name for name in options.fields.split(",") if name]


def _if_there(find: Callable[[Any], ImageSource | None], row_id: Any) -> ImageSource | None:
    try:
        return find(row_id)
    except ImageError:
        return None


def _id_of(text: str, collection: FocusedCollection) -> str | int:
    """A row's id as the collection has it."""
    if collection.layout.id_max_length is not None:
        return text
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(
            f"ids of collection {collection.name!r} are integers, got {shown(text)!r}", "image"
        ) from None
