"""The pages and what they load: files of the package, by a table made at the start."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

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
