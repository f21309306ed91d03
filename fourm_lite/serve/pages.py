"""What a server says of itself: the pages with what they load, and the OpenAPI description.

Pages are files of the package, by a table made at the start; the description is made of the tables
that check the requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fourm_lite.serve.fields import EMBED, GENERATE, SEARCH, Field, Kind, Limits

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object", "additionalProperties": True}
SCHEMAS: dict[Kind, Schema] = {
    "text": _TEXT,
    "texts": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "pictures": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "ids": {"oneOf": [_TEXT, {"type": "integer"}, {"type": "array"}]},
    "count": {"type": "integer"},
    "flag": {"type": "boolean"},
    "numbers": {"type": "object", "additionalProperties": {"type": "number"}},
    "values": _OBJECT,
    "names": {"type": "array", "items": _TEXT},
    "items": {"type": "array", "items": _OBJECT},
}
HITS: Schema = {
    "type": "object",
    "properties": {
        "index": _TEXT,
        "space": _TEXT,
        "rows": {"type": "integer"},
        "query": _TEXT,
        "compose": _TEXT,
        "p_right": {"type": ["number", "null"]},
        "p_means": {"type": ["string", "null"]},
        "good_match": {"type": ["boolean", "null"]},
        "hits": {"type": "array", "items": _OBJECT},
    },
}


def document(limits: Limits) -> dict[str, Any]:
    """The description as JSON values."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "fourm_lite search", "version": "1"},
        "paths": {
            "/search": _post("Words, pictures, rows, or several together.", SEARCH, HITS, limits),
            "/embed": _post("Unit vectors in the space of the index.", EMBED, _OBJECT, limits),
            "/generate": _post("Any modalities from any others.", GENERATE, _OBJECT, limits),
            "/items/{id}/thumbnail": _thumbnail(),
            "/info": _get("Rows, columns, what the model reads and makes.", "application/json"),
            "/healthz": _get("Whether the index can be read.", "application/json"),
            "/metrics": _get("Counters for Prometheus.", "text/plain"),
        },
    }


def _post(
    summary: str, fields: Mapping[str, Field], answer: Schema, limits: Limits
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _schema(field, limits) for name, field in fields.items()},
    }
    content = {kind: {"schema": schema} for kind in ("application/json", "multipart/form-data")}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content},
            "responses": _responses("application/json", answer),
        }
    }


def _schema(field: Field, limits: Limits) -> Schema:
    ends = {"minimum": field.least} if field.kind == "count" else {}
    ends |= {"maximum": getattr(limits, field.most)} if field.most else {}
    return {**SCHEMAS[field.kind], **ends, "description": field.help}


def _get(summary: str, kind: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _responses(kind, {})}}


def _thumbnail() -> dict[str, Any]:
    where = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
    side = {"name": "side", "in": "query", "schema": {"type": "integer", "default": 256}}
    out = _get("The photo of a row, small.", "image/jpeg")
    out["get"]["parameters"] = [where, side]
    return out


def _responses(kind: str, schema: Schema) -> dict[str, Any]:
    error = {"type": "object", "properties": {"error": _TEXT}}
    refused = {
        "description": "A sentence that says what was expected, what came, what to do.",
        "content": {"application/json": {"schema": error}},
    }
    done = {"description": "Done.", "content": {kind: {"schema": schema}}}
    return {"200": done, "4XX": refused, "503": refused, "504": refused}


KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """Routes of all files in `static/`, and the pages by their short names."""
    from starlette.responses import Response
    from starlette.routing import Route

    found = {
        file.name: (file.read_bytes(), KINDS[file.name.rpartition(".")[2]])
        for file in files(__package__).joinpath("static").iterdir()
        if file.name.rpartition(".")[2] in KINDS
    }

    def route(path: str, name: str) -> Route:
        data, kind = found[name]

        async def answer(_: Request) -> Response:
            return Response(data, headers={"Content-Type": kind, "Cache-Control": "no-cache"})

        return Route(path, answer)

    pages = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}
    static = {f"/static/{name}": name for name in found}
    return [route(path, name) for path, name in {**pages, **static}.items()]
