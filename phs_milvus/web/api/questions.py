"""What a request asks: a picture, what is pointed at in it, and how to look."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phs_milvus.contract.errors import InvalidInput, PromptError
from phs_milvus.contract.types import Focus
from phs_milvus.milvus.collection import MAX_LIMIT
from phs_milvus.pointing.prompts import Box, Mask, Point, Polygon, Prompt
from phs_milvus.search.scores import SCORES
from phs_milvus.web.api.fields import Field, Schema, check

MOST_LOCATED = 50
_MOST_PROMPTS = 256
_MOST_CORNERS = 10_000
_NUMBER: Schema = {"type": "number"}
_PAIR: Schema = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}

# Each prompt is an object with one of these members.
PROMPT_MEMBERS: dict[str, Schema] = {
    "point": {**_PAIR, "description": "x, y: a disc around it; `radius` in pixels, and `label` 0 to take it away"},
    "box": {
        "type": "array",
        "items": _NUMBER,
        "minItems": 4,
        "maxItems": 4,
        "description": "x0, y0, x1, y1; x1 and y1 exclusive",
    },
    "polygon": {
        "type": "array",
        "items": _PAIR,
        "minItems": 3,
        "maxItems": _MOST_CORNERS,
        "description": "its corners, x, y each",
    },
    "mask": {"type": "object", "description": 'COCO run lengths: {"size": [height, width], "counts": [...]}'},
}

QUESTION = (
    Field(
        "picture",
        "sha256 of a picture that was sent to /api/v1/pictures",
        {"anyOf": [{"type": "string", "maxLength": 64}, {"type": "null"}]},
    ),
    Field(
        "id",
        "id of a row of the collection, in place of `picture`",
        {"anyOf": [{"type": "string", "maxLength": 4096}, {"type": "integer"}, {"type": "null"}]},
    ),
    Field(
        "prompt",
        "what is pointed at: the union of all of these, in pixels of the upright picture; none: the whole picture",
        {"type": "array", "items": {"type": "object", "properties": PROMPT_MEMBERS}, "maxItems": _MOST_PROMPTS},
        [],
    ),
    Field(
        "heads",
        'attention heads to keep, or "all"; null: the model\'s default',
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 65536},
                {"type": "string", "enum": ["all"]},
                {"type": "null"},
            ]
        },
    ),
)

LOOK = (
    Field(
        "attention_shift",
        "share of the last layer's attention that is moved onto the prompt",
        {"type": "number", "minimum": 0, "maximum": 1},
        1.0,
    ),
    Field(
        "zooms",
        "0 is the whole picture; 1 or more the crop around the prompt, grown by so much; several are averaged",
        {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 100}, "minItems": 1, "maxItems": 8},
        [0.0],
    ),
)

SEARCH = (
    *QUESTION,
    *LOOK,
    Field("ann_heads", "heads of stage one; null: those of `heads`", QUESTION[-1].schema, "all"),
    Field("limit", "hits to return", {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, 10),
    Field(
        "candidates",
        "rows that stage one passes on; null: ten times `limit`, at least 200",
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}, {"type": "null"}]},
    ),
    Field("filter", "a Milvus expression over the rows' fields", {"type": "string", "maxLength": 65_536}, ""),
    Field(
        "fields",
        'the rows\' fields to return; "*": all but embedding and state',
        {"type": "array", "items": {"type": "string", "maxLength": 256}, "maxItems": 64},
        [],
    ),
    Field("score", "what hits are ranked by", {"type": "string", "enum": list(SCORES)}, "blend"),
    Field(
        "min_score",
        "leaves out what scores less",
        {"anyOf": [{"type": "number", "minimum": -1, "maximum": 1}, {"type": "null"}]},
    ),
    Field("exclude_query", "leaves out the query's own picture, by its bytes", {"type": "boolean"}, True),
    Field(
        "original",
        "sha256 of the file that `picture` was made smaller from: exclude_query leaves its row out too",
        {"anyOf": [{"type": "string", "maxLength": 64}, {"type": "null"}]},
    ),
    Field("rerank", "false stops after stage one", {"type": "boolean"}, True),
    Field(
        "localize",
        "so many of the best rows are looked into, and ranked by what is found there; null: none",
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 1000}, {"type": "null"}]},
    ),
    Field("boxes", "at most, in each row that is looked into", {"type": "integer", "minimum": 1, "maximum": 50}, 5),
)

EXPLAIN = (
    *QUESTION,
    Field("attention_shift", LOOK[0].about, LOOK[0].schema, 0.0),
    Field("zoom", "as one of `zooms` of a search", {"type": "number", "minimum": 0, "maximum": 100}, 0.0),
)

LOCATE = (
    *QUESTION,
    LOOK[0],
    Field(
        "ids",
        "ids of the rows to look into",
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string", "maxLength": 4096}, {"type": "integer"}]},
            "minItems": 1,
            "maxItems": MOST_LOCATED,
        },
        required=True,
    ),
    Field("boxes", "at most, in each picture", {"type": "integer", "minimum": 1, "maximum": 50}, 5),
)


def prompt_of(given: list[dict[str, Any]]) -> Prompt | None:
    """The union of a request's prompts; None where there are none.

    Raises:
        PromptError: one of them cannot be used; `.field` says which, as "prompt[2]".
    """
    prompts = [_one(each, f"prompt[{index}]") for index, each in enumerate(given)]
    if not prompts:
        return None
    return prompts[0] if len(prompts) == 1 else prompts


def focus_of(values: Mapping[str, Any]) -> Focus:
    """The focus that a search, an explanation or a location asks for; raises InvalidInput, on the member at fault."""
    zooms = values.get("zooms") or [values.get("zoom", 0.0)]
    if any(0 < zoom < 1 for zoom in zooms):
        name = "zooms" if "zooms" in values else "zoom"
        raise InvalidInput(f"0 is the whole picture, and a crop is grown by 1 or more; got {zooms}", name)
    return Focus(
        heads_on=values["heads"],
        attention_shift=values["attention_shift"],
        zoom=tuple(zooms),
        ann_heads=values.get("ann_heads", "all"),
    )


def _one(given: dict[str, Any], name: str) -> Prompt:
    kinds = [kind for kind in PROMPT_MEMBERS if kind in given]
    extra = set(given) - {*kinds, *(("radius", "label") if kinds == ["point"] else ())}
    if len(kinds) != 1 or extra:
        raise PromptError(
            f"has one of {', '.join(PROMPT_MEMBERS)}, and a point perhaps radius and label; got {sorted(given)}", name
        )
    (kind,) = kinds
    try:
        check(given[kind], PROMPT_MEMBERS[kind], name)
        if kind == "point":
            x, y = given[kind]
            return Point(x, y, radius=given.get("radius"), label=given.get("label", 1))
        if kind == "box":
            return Box(*given[kind])
        return Polygon(given[kind]) if kind == "polygon" else Mask(given[kind])
    except InvalidInput as error:
        raise PromptError(str(error), name) from None
