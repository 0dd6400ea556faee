"""FiftyOne: an operator that finds the samples with what is selected in the App, as a view, best first.

    phs-milvus ingest ~/Pictures                                # the pictures of the dataset, by their paths
    phs-server --model facebook/dinov2-base &
    export PHS_ENCODER=127.0.0.1:50051 PHS_MILVUS=$PWD/phs_milvus.db
    ln -s "$(python -c 'import phs_milvus.integrations as i; print(*i.__path__)')/fiftyone" \
        "$(fiftyone config plugins_dir)/phs_milvus"

Then, in the App, select a label, press ` and choose "Find what is selected". Several labels are several examples of one
thing; selected samples without a label are looked at as a whole. From Python:

    import fiftyone.operators as foo

    context = {"dataset": dataset, "selected_labels": session.selected_labels}
    found = foo.execute_operator("@phs-milvus/point/find_selected", context, params={"limit": 25})
    view = dataset.select(found.result["samples"], ordered=True)

Settings are those of the command line: PHS_ENCODER, PHS_ENCODER_CA and so on, PHS_MILVUS and PHS_MILVUS_TOKEN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
from fiftyone.operators import types
from PIL import Image

from phs_milvus.client import environment
from phs_milvus.client.encoder import Encoder
from phs_milvus.client.requests import DEFAULT_ADDRESS
from phs_milvus.contract.errors import InvalidInput, PhsError
from phs_milvus.contract.images import load_image
from phs_milvus.milvus.collection import FocusedCollection
from phs_milvus.milvus.connection import close, connect
from phs_milvus.pointing.prompts import Box, Mask, Point, Polygon, Prompt
from phs_milvus.search.focused import FocusedSearch
from phs_milvus.search.hits import SearchResult
from phs_milvus.search.queries import Examples, Query

_NOTHING = "select a label, or a sample to look for all of it"


class FindSelected(foo.Operator):  # type: ignore[misc]  # FiftyOne has no types
    """Params: collection, "images" by default; limit, 25 by default; filter, a Milvus expression.

    Its result: {"samples": ids, best first; "elsewhere": how many hits are no samples of this dataset}.
    """

    @property
    def config(self) -> foo.OperatorConfig:
        """What the App lists."""
        return foo.OperatorConfig("find_selected", label="Find what is selected", icon="/search", dynamic=True)

    def resolve_placement(self, ctx: foo.ExecutionContext) -> types.Placement:
        """A button beside an open sample, where labels are selected."""
        button = types.Button(label=self.config.label, icon=self.config.icon, prompt=True)
        return types.Placement(types.Places.SAMPLES_VIEWER_ACTIONS, button)

    def resolve_input(self, ctx: foo.ExecutionContext) -> types.Property:
        """The form."""
        form = types.Object()
        count = len(ctx.selected_labels or ()) or len(ctx.selected)
        if not count:
            nothing = form.view("nothing", types.Warning(label="Nothing is selected", description=_NOTHING))
            nothing.invalid, nothing.error_message = True, _NOTHING
        form.str("collection", label="Milvus collection", default="images")
        form.int("limit", label="Samples to find", default=25, min=1)
        form.str("filter", label="Filter", description='a Milvus expression, such as album == "holidays"')
        return types.Property(form, view=types.View(label=f"Find what is selected ({count})"))

    def execute(self, ctx: foo.ExecutionContext) -> dict[str, Any]:
        """Searches, and shows the samples found.

        Raises:
            PhsError: nothing usable is selected, or the search failed.
        """
        examples = list(_selected(ctx))
        if not examples:
            raise InvalidInput(_NOTHING, "selected")
        result = _search(ctx, examples)
        samples = _samples_of(ctx.dataset, result)
        if not samples:
            raise PhsError(
                f"none of {len(result)} hits is a sample of {ctx.dataset.name!r}: the collection's rows are of other "
                "files; a row belongs to the sample that has its id or its path"
            )
        if ctx.current_sample:
            ctx.ops.close_sample()
        ctx.ops.clear_selected_labels()
        ctx.ops.set_view(view=ctx.dataset.select(samples, ordered=True))
        return {"samples": samples, "elsewhere": len(result) - len(samples)}


def register(plugin: Any) -> None:
    """What FiftyOne calls when it loads the plugin."""
    plugin.register(FindSelected)


def prompt_of(label: fo.Label, width: int, height: int) -> Prompt:
    """What a label selects in a picture of this size: its mask, box, outlines or points, which are shares of the size.

    Raises:
        InvalidInput: a label that is no part of a picture.
    """
    if isinstance(label, fo.Detection):
        x, y, across, down = label.bounding_box
        box = x * width, y * height, (x + across) * width, (y + down) * height
        return Mask(_whole_mask(label.get_mask(), box, width, height)) if label.has_mask else Box(*box)
    if isinstance(label, fo.Polyline):
        return [Polygon([(x * width, y * height) for x, y in outline]) for outline in label.points]
    if isinstance(label, fo.Keypoint):
        return [Point(x * width, y * height) for x, y in label.points if np.isfinite((x, y)).all()]
    kind = type(label).__name__
    raise InvalidInput(f"a {kind} is no part of a picture; select a detection, polyline or keypoint", "label")


def _whole_mask(mask: Any, box: tuple[float, ...], width: int, height: int) -> Any:
    """bool [height, width]: an instance mask of any size, laid over its box."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    canvas = Image.new("L", (width, height))
    inside = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8) * 255)
    canvas.paste(inside.resize((max(1, x1 - x0), max(1, y1 - y0)), Image.Resampling.NEAREST), (x0, y0))
    return np.asarray(canvas) > 0


def _selected(ctx: foo.ExecutionContext) -> Iterator[Query]:
    """A query for each selected label; without one, for each selected or open sample as a whole."""
    for chosen in ctx.selected_labels or ():
        sample = ctx.dataset[chosen["sample_id"]]
        picture = load_image(sample.filepath)
        yield Query(picture, prompt_of(_label(sample, chosen), picture.width, picture.height))
    if not ctx.selected_labels:
        for sample_id in ctx.selected or filter(None, [ctx.current_sample]):
            yield Query(ctx.dataset[sample_id].filepath)


def _label(sample: fo.Sample, chosen: dict[str, Any]) -> fo.Label:
    value = sample[chosen["field"]]
    several = getattr(value, "_LABEL_LIST_FIELD", None)
    labels = [value] if several is None else value[several]
    for label in labels:
        if label is not None and label.id == chosen["label_id"]:
            return label
    raise InvalidInput(f"sample {sample.id} has no label {chosen['label_id']} in {chosen['field']!r} any more", "label")


def _search(ctx: foo.ExecutionContext, examples: list[Query]) -> SearchResult:
    """Milvus Lite takes one process at a time, so the connections last no longer than this."""
    address = (ctx.secret("PHS_ENCODER") or DEFAULT_ADDRESS).split(",")
    client = connect(ctx.secret("PHS_MILVUS") or "./phs_milvus.db", ctx.secret("PHS_MILVUS_TOKEN") or "")
    try:
        collection = FocusedCollection.open(client, ctx.params.get("collection", "images"))
        fields = ["path"] if collection.layout.dynamic or "path" in collection.layout.others else []
        with Encoder(address, tls=environment.tls(), token=environment.token()) as encoder:
            (result,) = FocusedSearch(collection, encoder).search_many(
                [Examples(examples)],
                limit=ctx.params.get("limit", 25),
                filter=ctx.params.get("filter") or "",
                output_fields=fields,
            )
    finally:
        close(client)
    return result


def _samples_of(dataset: fo.Dataset, result: SearchResult) -> list[str]:
    """The ids of the samples that the hits' rows are of, in their order: those with a row's id, or its path."""
    paths = [str(path) for hit in result if (path := hit.fields.get("path"))]
    ids, files = dataset.select_by("filepath", paths).values(["id", "filepath"]) if paths else ([], [])
    by_path = {str(Path(file).resolve()): sample_id for sample_id, file in zip(ids, files, strict=True)}
    known = set(dataset.select([str(hit.id) for hit in result if _is_sample_id(hit.id)]).values("id"))
    samples = [
        str(hit.id) if str(hit.id) in known else by_path.get(str(Path(hit.fields.get("path") or "").resolve()))
        for hit in result
    ]
    return list(dict.fromkeys(filter(None, samples)))


def _is_sample_id(row_id: object) -> bool:
    return isinstance(row_id, str) and len(row_id) == 24 and not set(row_id) - set("0123456789abcdef")
