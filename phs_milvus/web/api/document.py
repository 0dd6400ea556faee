"""The OpenAPI document, made of the tables that requests are checked against, and a page that shows it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from phs_milvus.web.api.fields import Field
from phs_milvus.web.api.questions import EXPLAIN, LOCATE, SEARCH
from phs_milvus.web.renditions import SIZES

_ABOUT = (
    "Search a Milvus collection by the thing you point at. Coordinates are pixels of the upright picture (EXIF "
    "orientation applied), origin top-left; boxes are x0, y0, x1, y1 with x1 and y1 exclusive. A picture is sent once, "
    "to /api/v1/pictures, and named by its sha256 from then on. Errors are application/problem+json with the name of "
    "the member that is wrong in `field`."
)
_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong, and what to do about it"},
        "field": {"type": "string", "description": "the member, parameter or header that is wrong; may be missing"},
    },
}
_OBJECT = {"type": "object"}
_SIDES = {"width": {"type": "integer", "description": "of the upright picture"}, "height": {"type": "integer"}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_SCORES = ("score", "ann_score", "query_db_score", "blend_score", "localized_score")
_LOCATION = {
    **_SIDES,
    "boxes": {
        "type": "array",
        "items": {"type": "object", "properties": {"box": _NUMBERS, "score": {"type": "number"}}},
        "description": "best first; missing where nobody looked",
    },
    "peak": {**_NUMBERS, "description": "x, y, where most speaks for it"},
    "error": {"type": "string", "description": "why its picture could not be looked into"},
}
_HIT = {
    "rank": {"type": "integer"},
    "id": {"type": "string", "description": "also where the collection's key is an integer"},
    **{name: {"type": ["number", "null"]} for name in _SCORES},
    "ann_rank": {"type": "integer"},
    "query_db_rank": {"type": ["integer", "null"]},
    **_LOCATION,
    "fields": {**_OBJECT, "description": "the fields that were asked for"},
}
_HEADS = {
    "head_scores": {"type": ["array", "null"], "description": "share of each head's attention on the prompt"},
    "head_weights": {"type": ["array", "null"], "description": "0 for heads that are left out"},
}
_FOUND = {
    "query": {"type": "object", "properties": {**_SIDES, **_HEADS}},
    "hits": {"type": "array", "items": {"type": "object", "properties": _HIT}},
    "milliseconds": _OBJECT,
}
_EXPLAINED = {
    **_SIDES,
    "region": {**_NUMBERS, "description": "x0, y0, x1, y1: the part of the picture that the grids span"},
    "grid": {**_NUMBERS, "description": "rows and columns of patches"},
    "mask": {"type": ["array", "null"], "description": "the prompt on the grid, 0 to 1"},
    "attention": {"type": "array", "description": "of each head, a grid of its attention"},
    **_HEADS,
    "kept": {"type": "array", "items": {"type": "integer"}, "description": "the heads that are kept, from 0"},
}
_HELD = {"picture": {"type": "string"}, **_SIDES}
_SIZE = {"name": "size", "in": "query", "schema": {"type": "integer", "enum": list(SIZES)}}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    picture = {"name": "digest", "in": "path", "required": True, "schema": {"type": "string"}}
    row = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    after = {"name": "after", "in": "query", "schema": {"type": "string"}}
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "default": 60}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "phs-milvus", "version": "1", "description": _ABOUT},
        "paths": {
            "/api/v1/info": {"get": _operation("Model, collection and limits, or what is missing.", _OBJECT)},
            "/api/v1/rows": {
                "get": _operation(
                    "Ids of the collection in ascending order, after one of them.",
                    _members({"ids": {"type": "array"}, "after": {"description": "for the next page; null: the end"}}),
                    parameters=[after, limit],
                )
            },
            "/api/v1/rows/{id}": {
                "get": _operation(
                    "A row: the size of its upright picture, and its fields.",
                    _members({"id": {}, **_SIDES, "fields": _OBJECT}),
                    parameters=[row],
                )
            },
            "/api/v1/pictures": {
                "post": {
                    **_operation("Sends a picture: the bytes of its file are the body.", _members(_HELD), status="201"),
                    "requestBody": {"required": True, "content": {"application/octet-stream": {}}},
                }
            },
            "/api/v1/pictures/{digest}": {
                "get": _operation("A picture that was sent, upright and smaller.", None, parameters=[picture, _SIZE])
            },
            "/api/v1/search": {"post": _posted("Finds the pictures that contain it.", SEARCH, _FOUND)},
            "/api/v1/explain": {"post": _posted("What each attention head looks at.", EXPLAIN, _EXPLAINED)},
            "/api/v1/locate": {
                "post": _posted(
                    "Where it is in the pictures of some rows.",
                    LOCATE,
                    {"rows": {"type": "array", "items": _members({"id": {}, **_LOCATION})}},
                )
            },
            "/image/{id}": {"get": _operation("A row's picture, upright and smaller.", None, parameters=[row, _SIZE])},
        },
        "components": {
            "schemas": {"Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def as_page(described: dict[str, Any]) -> str:
    """The document as a web page, without script."""
    parts = []
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            parts.append(
                f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(about['summary'])}</p>"
                f"{_table('Parameters', {each['name']: each['schema'] for each in about.get('parameters', [])})}"
                f"{_table('Body', _properties(about.get('requestBody', {})))}"
                f"{_table('Answer', _properties(next(iter(about['responses'].values()))))}</section>"
            )
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        "<title>phs-milvus API</title><link rel=stylesheet href=/static/base.css>"
        "<link rel=stylesheet href=/static/document.css><main><h1>API</h1>"
        f"<p>{html.escape(described['info']['description'])}</p>"
        "<p><a href=/api/v1/openapi.json>OpenAPI document</a> · <a href=/>the page</a></p>" + "".join(parts) + "</main>"
    )


def _operation(
    summary: str, schema: dict[str, Any] | None, *, parameters: Sequence[dict[str, Any]] = (), status: str = "200"
) -> dict[str, Any]:
    content = {"image/jpeg": {}} if schema is None else {"application/json": {"schema": schema}}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "summary": summary,
        **({"parameters": list(parameters)} if parameters else {}),
        "responses": {
            status: {"description": "done", "content": content},
            "default": {"description": "a problem", "content": problem},
        },
    }


def _posted(summary: str, fields: Sequence[Field], answer: dict[str, Any]) -> dict[str, Any]:
    body = {
        "type": "object",
        "properties": {each.name: each.documented for each in fields},
        "required": [each.name for each in fields if each.required],
        "additionalProperties": False,
    }
    return {
        **_operation(summary, _members(answer)),
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
    }


def _members(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _properties(holder: dict[str, Any]) -> dict[str, Any]:
    schema = holder.get("content", {}).get("application/json", {}).get("schema", {})
    return dict(schema.get("properties", {}))


def _table(title: str, members: dict[str, Any]) -> str:
    if not members:
        return ""
    rows = "".join(_row(name, schema) for name, schema in members.items())
    return f"<h3>{title}</h3><table>{rows}</table>"


def _row(name: str, schema: dict[str, Any]) -> str:
    about = html.escape(schema.get("description", ""))
    if "default" in schema:
        about += f" <small>default <code>{html.escape(json.dumps(schema['default']))}</code></small>"
    return f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_kind(schema))}<td>{about}"


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    kind = schema.get("type", "any")
    if "items" in schema and isinstance(kind, str):
        return f"{kind} of {_kind(schema['items'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
