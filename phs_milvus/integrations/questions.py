"""What users of a framework ask with: our own values, or texts and JSON, as pipelines and requests carry them.

    Query("street.jpg", Box(40, 60, 180, 220))                  # and Examples, and an Encoding
    {"image": "street.jpg", "box": [40, 60, 180, 220]}          # point, polygon and mask too; several are a union
    {"like": [{...}, {...}], "unlike": [{...}]}                 # several examples
    "street.jpg:40,60,180,220"                                  # as --like on the command line
    "street.jpg"                                                # all of it, as any image

A text names a file of this machine: it must not come from a stranger.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from phs_milvus.contract.errors import InvalidInput, shown
from phs_milvus.contract.types import Encoding
from phs_milvus.pointing.prompts import Box, Mask, Point, Polygon, Prompt, parse_box
from phs_milvus.search.queries import Examples, Query, Question

_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_WITH_BOX = re.compile(rf"(.+):({_NUMBER}(?:,{_NUMBER}){{3}})", re.DOTALL)
_SHAPES = ("box", "point", "polygon", "mask")


def question_of(value: Any) -> Question:
    """A question in any of the forms above; an image alone asks for all of it.

    Raises:
        InvalidInput: an empty text, a mapping without an image or with a key that means nothing.
        PromptError: a shape that cannot be used.
    """
    if isinstance(value, Query | Encoding | Examples):
        return value
    if isinstance(value, Mapping):
        return _examples(value) if "like" in value or "unlike" in value else _query(value)
    if isinstance(value, str):
        if not value.strip():
            raise InvalidInput('empty; give an image and a box, for example "street.jpg:40,60,180,220"', "query")
        if found := _WITH_BOX.fullmatch(value):
            return Query(found[1], parse_box(found[2]))
    return Query(value)


def prompt_of(value: Any) -> Prompt | None:
    """A prompt, or a mapping of its shapes, {"box": [x0, y0, x1, y1]}, as one; None for the whole image.

    box: x0, y0, x1, y1; point: x, y and perhaps a radius; polygon: pairs x, y; mask: see `Mask`. In pixels of the
    upright image.

    Raises:
        InvalidInput: a key that is no shape, or no shape at all.
        PromptError: a shape that cannot be used.
    """
    if not isinstance(value, Mapping):
        prompt: Prompt | None = value
        return prompt
    if not value or set(value) - set(_SHAPES):
        raise InvalidInput(f"has {_keys(value)}; a prompt has {', '.join(_SHAPES)}", "prompt")
    prompts: list[Prompt] = [_shape(name, value[name]) for name in _SHAPES if name in value]
    return prompts[0] if len(prompts) == 1 else prompts


def _query(value: Mapping[str, Any]) -> Query:
    if "image" not in value or set(value) - {"image", "prompt", *_SHAPES}:
        raise InvalidInput(f"has {_keys(value)}; a query has image, and prompt or {', '.join(_SHAPES)}", "query")
    shapes = {name: value[name] for name in _SHAPES if name in value}
    if shapes and "prompt" in value:
        raise InvalidInput(f"has prompt and {_keys(shapes)}; give one of them", "query")
    return Query(value["image"], prompt_of(shapes or value.get("prompt")))


def _examples(value: Mapping[str, Any]) -> Examples:
    if set(value) - {"like", "unlike"}:
        raise InvalidInput(f"has {_keys(value)}; several examples have like and unlike", "query")
    like, unlike = ([question_of(one) for one in value.get(name, ())] for name in ("like", "unlike"))
    return Examples(like, unlike)  # type: ignore[arg-type]  # which refuses examples in examples


def _shape(name: str, value: Any) -> Prompt:
    if name == "mask":
        return Mask(value)
    if name == "polygon":
        return Polygon(value)
    kind, counts = (Box, (4,)) if name == "box" else (Point, (2, 3))
    if isinstance(value, str | Mapping) or not hasattr(value, "__len__") or len(value) not in counts:
        form = "x0, y0, x1, y1" if name == "box" else "x, y or x, y, radius"
        raise InvalidInput(f"{name} is {form} in pixels, got {shown(value)}", "prompt")
    prompt: Prompt = kind(*value)
    return prompt


def _keys(value: Mapping[str, Any]) -> str:
    return shown(", ".join(map(str, value)) or "nothing")
