"""The service over HTTP: routes, statuses and sentences. Starlette is imported when it is built.

Bodies are read by the library's own readers (strict JSON, a table of fields), so that every refusal
is a sentence; see docs/serving.md for why it is Starlette and not FastAPI.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fourm_lite.errors import FourMError, StorageError
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.search.index.lance_calls import UnreadableError
from fourm_lite.serve.fields import IMAGE_NAMES, Refused, busy, too_late
from fourm_lite.serve.guards import Door, Metrics
from fourm_lite.serve.pages import document, page_routes
from fourm_lite.serve.service import Service

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)
Result = TypeVar("Result")
REPEATED = ("text", "not_text", "like", "not_like", "targets")
JSON_PARTS = ("k", "rerank", "seed", "given", "weights", "stream", "items")
"""Parts of a form that may stand several times, and those that are JSON."""
DECODERS = 2
"""Photos that are decoded at once: each may take a quarter of a gigabyte."""


def build_app(
    service: Service, *, token: str | None = None, hosts: tuple[str, ...] = ("*",)
) -> Starlette:
    """The application, an ASGI one.

    Args:
        service: what answers
        token: what every request must bear ("Authorization: Bearer ..."); None for no such check
        hosts: names by which the server may be called; "*" for any
    """
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    door = Endpoints(service)
    metrics = Metrics(lambda: door.waiting, lambda: len(service.search.index))
    service.seen = metrics.batch
    door.metrics = metrics
    guards = Middleware(
        Door, limits=service.limits, token=token, hosts=hosts, answered=metrics.answered
    )
    routes = [
        Route("/search", door.search, methods=["POST"]),
        Route("/embed", door.embed, methods=["POST"]),
        Route("/generate", door.generate, methods=["POST"]),
        Route("/items/{id:path}/thumbnail", door.thumbnail),
        Route("/healthz", door.health),
        Route("/info", door.info),
        Route("/metrics", door.told_metrics),
        Route("/openapi.json", door.openapi),
        *page_routes(),
    ]
    return Starlette(
        routes=routes,
        middleware=[guards],
        exception_handlers=_handlers(),
        lifespan=_closing(service),
    )


def _closing(service: Service) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        service.close()

    return lifespan


class Endpoints:
    """One method a route."""

    def __init__(self, service: Service) -> None:
        self.service, self.waiting = service, 0
        self.metrics: Metrics | None = None
        self._decoding = asyncio.Semaphore(DECODERS)

    async def search(self, request: Request) -> Response:
        """`POST /search`."""
        async with self._place():
            ask = await self._thread(self.service.question, await self._body(request))
            return _json(await _answer(self.service.hits(ask), self.service.limits.seconds))

    async def embed(self, request: Request) -> Response:
        """`POST /embed`."""
        async with self._place():
            items = await self._thread(self.service.items, await self._body(request))
            vectors = await _answer(self.service.vectors(items), self.service.limits.seconds)
            space = self.service.search.index.manifest.space
            facts = {"space": space, "width": vectors.shape[1]}
            return _json({**facts, "vectors": vectors.tolist()})

    async def generate(self, request: Request) -> Response:
        """`POST /generate`: one answer, or with "stream" a line of JSON a step."""
        from starlette.responses import StreamingResponse

        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._place())
            body = await self._body(request)
            lines: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
            loop, gone = asyncio.get_running_loop(), [False]

            def tell(line: Mapping[str, Any]) -> None:
                if gone[0]:
                    raise Refused(499, "the client is gone")
                loop.call_soon_threadsafe(lines.put_nowait, line)

            work = await self._thread(lambda: self.service.work(body, tell))
            future = self.service.generated(work)
            if body.get("stream") is not True:
                try:
                    return _json(await _answer(future, self.service.limits.generating))
                finally:
                    gone[0] = True
            rest = held.pop_all()

            async def told() -> AsyncIterator[bytes]:
                future.add_done_callback(
                    lambda _: loop.call_soon_threadsafe(lines.put_nowait, None)
                )
                try:
                    while (line := await lines.get()) is not None:
                        yield _line(line)
                    yield _line(_last(future))
                finally:
                    gone[0] = True
                    future.cancel()
                    await rest.aclose()

            return StreamingResponse(told(), media_type="application/x-ndjson")

    async def thumbnail(self, request: Request) -> Response:
        """`GET /items/{id}/thumbnail?side=256`."""
        from starlette.responses import Response

        side = request.query_params.get("side", "256")
        if not side.isascii() or not side.isdigit() or len(side) > 5:
            raise Refused(400, f"side should be a whole number, got {side[:40]!r}")
        name = request.path_params["id"]
        async with self._decoding:
            data = await self._thread(lambda: self.service.photos.thumbnail(name, int(side)))
        headers = {"Cache-Control": "private, max-age=300"}
        return Response(data, media_type="image/jpeg", headers=headers)

    async def health(self, request: Request) -> Response:
        """`GET /healthz`: whether the index can be read."""
        try:
            rows = await self._thread(lambda: len(self.service.search.index))
        except FourMError as error:
            raise Refused(503, str(error)) from error
        return _json({"status": "ok", "rows": rows})

    async def info(self, request: Request) -> Response:
        """`GET /info`."""
        return _json(await self._thread(self.service.facts))

    async def told_metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        from starlette.responses import Response

        assert self.metrics is not None
        data, kind = await self._thread(self.metrics.text)
        return Response(data, headers={"Content-Type": kind})

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return _json(document(self.service.limits))

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """A place among the requests that are read, wait or are answered."""
        if self.waiting >= self.service.limits.waiting:
            raise busy(f"{self.waiting} requests are waiting already")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _body(self, request: Request) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.service.limits.seconds):
                kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
                if kind == "multipart/form-data":
                    return await _form(request)
                if kind != "application/json":
                    raise Refused(
                        415, "a body is application/json or multipart/form-data, got "
                        f"{kind[:60]!r}",
                    )  # fmt: skip
                return as_object(parse_json(await request.body(), "the body"), "the body")
        except TimeoutError:
            raise Refused(408, "the body did not arrive in time") from None

    async def _thread(self, job: Callable[..., Result], *given: Any) -> Result:
        return await asyncio.to_thread(job, *given)


async def _form(request: Request) -> dict[str, Any]:
    """The parts of a form: files are pictures, `body` is JSON, others are JSON or plain text."""
    from starlette.datastructures import UploadFile

    found: dict[str, Any] = {}
    async with request.form(max_files=64, max_fields=64, max_part_size=1 << 20) as form:
        for name, part in form.multi_items():
            if isinstance(part, UploadFile):
                if name not in IMAGE_NAMES:
                    raise Refused(
                        400, f"a file is one of {', '.join(IMAGE_NAMES)}, got {name!r:.60}"
                    )
                found.setdefault(name, []).append(await part.read())
            elif name == "body":
                found |= as_object(parse_json(part, "the part 'body'"), "the part 'body'")
            elif name in JSON_PARTS:
                found[name] = parse_json(part, f"the part {name!r}")
            elif name in REPEATED:
                found.setdefault(name, []).append(part)
            else:
                found[name] = part
    several = (n for n in (*IMAGE_NAMES, *REPEATED) if isinstance(found.get(n), list))
    return found | {n: found[n][0] for n in several if len(found[n]) == 1}


async def _answer(future: Any, seconds: float) -> Any:
    """What a thread answers, within a time."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise too_late(seconds) from None


def _last(future: Any) -> Mapping[str, Any]:
    if future.cancelled():
        return {"error": "the request was given up"}
    error = future.exception()
    if error is None:
        return {"done": True}
    known = isinstance(error, FourMError)
    return {"error": str(error) if known else "something went wrong; the server's log tells what"}


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, default=str, ensure_ascii=False).encode() + b"\n"


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A value as `--json` prints it: what JSON has no word for is a text."""
    from starlette.responses import Response

    text = json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
    return Response(
        text.encode("utf-8", "replace"), status, headers=headers, media_type="application/json"
    )


def _handlers() -> dict[Any, Any]:
    """How errors are answered: a status and a sentence."""
    from starlette.exceptions import HTTPException

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, FourMError)
        status, headers = 400, {}
        if isinstance(error, Refused):
            status = error.status
            headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        elif isinstance(error, StorageError | UnreadableError):
            status = 503
        return _json({"error": str(error)}, status, headers)

    async def by_starlette(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = error.detail
        if error.status_code in (404, 405):
            told = f"there is no {request.method} {request.url.path[:80]} here; /docs tells what is"
        return _json({"error": told}, error.status_code, error.headers)

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s failed", request.url.path, exc_info=error)
        return _json({"error": "something went wrong here; the server's log tells what"}, 500)

    return {FourMError: refused, HTTPException: by_starlette, Exception: unexpected}
