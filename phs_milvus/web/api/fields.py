"""What a JSON body may hold: one table that requests are checked against and that the OpenAPI document is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phs_milvus.contract.errors import InvalidInput, shown

Schema = Mapping[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True)
class Field:
    """One member of a JSON object.

    Attributes:
        about: for people, in the document.
        schema: JSON Schema, of which `check` knows type, enum, minimum, maximum, maxLength, minItems, maxItems, items
            and anyOf.
        default: where the member is missing.
    """

    name: str
    about: str
    schema: Schema
    default: Any = None
    required: bool = field(default=False, kw_only=True)

    @property
    def documented(self) -> dict[str, Any]:
        """The member as the OpenAPI document shows it."""
        return {**self.schema, "description": self.about, **({} if self.required else {"default": self.default})}


def read(body: bytes, fields: Sequence[Field]) -> dict[str, Any]:
    """The members of a JSON object, with defaults for those that are missing.

    Raises:
        InvalidInput: no JSON object, a member that is not among `fields`, or one that does not fit its schema;
            `.field` names the member.
    """
    try:
        given = json.loads(body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the body is no JSON: {shown(error)}", "body") from None
    if not isinstance(given, dict):
        raise InvalidInput(f"the body is a JSON object, got {_kind(given)}", "body")
    known = {each.name: each for each in fields}
    for name in given:
        if name not in known:
            raise InvalidInput(f"there is no such member; there are: {', '.join(known)}", shown(name, 40))
    values = {}
    for each in fields:
        if each.name not in given:
            if each.required:
                raise InvalidInput(f"is missing: {each.about}", each.name)
            values[each.name] = each.default
            continue
        check(given[each.name], each.schema, each.name)
        values[each.name] = given[each.name]
    return values


def check(value: Any, schema: Schema, name: str) -> None:
    """Raises InvalidInput, on the field of this name, unless a value fits a schema."""
    if "anyOf" in schema:
        fitting = [option for option in schema["anyOf"] if _has_type(value, option)]
        if not fitting:
            kinds = " or ".join(option.get("type", "") for option in schema["anyOf"])
            raise InvalidInput(f"must be {kinds}, got {_kind(value)}", name)
        return check(value, fitting[0], name)
    if not _has_type(value, schema):
        raise InvalidInput(f"must be {schema['type']}, got {_kind(value)}", name)
    if "enum" in schema and value not in schema["enum"]:
        raise InvalidInput(f"must be one of {', '.join(map(str, schema['enum']))}, got {shown(value, 60)!r}", name)
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if isinstance(value, int | float) and not low <= value <= high:
        raise InvalidInput(f"must be {low:g} to {high:g}, got {shown(value, 40)}", name)
    if isinstance(value, str) and len(value) > schema.get("maxLength", math.inf):
        raise InvalidInput(f"has {len(value):,} characters; at most {schema['maxLength']:,} are taken", name)
    if isinstance(value, list):
        low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
        if not low <= len(value) <= high:
            raise InvalidInput(f"has {len(value):,} items; {low:g} to {high:g} are taken", name)
        for index, item in enumerate(value):
            check(item, schema.get("items", {}), f"{name}[{index}]")
    return None


def _has_type(value: Any, schema: Schema) -> bool:
    wanted = schema.get("type")
    if wanted is None:
        return True
    return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _kind(value: Any) -> str:
    for name, types in _TYPES.items():
        if _has_type(value, {"type": name}) and isinstance(value, types):
            return f"the {name} {shown(value, 40)}" if name in ("integer", "number", "boolean") else name
    return type(value).__name__


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
