"""What stands before every route: who may ask, how large a body may be, and what is counted.

A server on the own machine is reached by every page that the browser shows: requests that another
site makes are refused, and so are names of hosts that are not the server's (DNS rebinding). What is
counted is told in the words of Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fourm_lite.serve.fields import Limits, Refused

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/", "/docs", "/healthz", "/openapi.json", "/favicon.ico")
"""What needs no token: pages without data."""
DRAINED = 8
"""How many times the largest body is read away before a refusal."""
HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Door:
    """An ASGI middleware.

    Args:
        app: what stands behind
        limits: how large a body may be
        token: what a request must bear
        hosts: how the server may be called; "*" for any
        answered: told path, status and seconds of each request
    """

    def __init__(
        self,
        app: App,
        *,
        limits: Limits,
        token: str | None,
        hosts: tuple[str, ...],
        answered: Callable[[str, int, float], None],
    ) -> None:
        self._app, self._limits, self._token = app, limits, token
        self._hosts, self._answered = hosts, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), [500]
        body = _Body(receive, self._limits.body)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                if scope["method"] == "POST":
                    await body.drain(self._limits.seconds)
                status[0] = message["status"]
                known = {name for name, _ in message["headers"]}
                more = [pair for pair in HEADERS.items() if pair[0] not in known]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await _refuse(refusal, told)
            else:
                await self._app(scope, body, told)
        finally:
            self._answered(_name(scope), status[0], time.perf_counter() - start)

    def _refusal(self, scope: Scope) -> Refused | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = _host(headers.get(b"host", ""))
        if "*" not in self._hosts and host not in self._hosts:
            return Refused(
                421,
                f"this server is not called {host[:80]!r}; start it with --allow-host, if it is",
            )
        if scope["method"] == "POST" and headers.get(b"sec-fetch-site") in (
            "cross-site",
            "same-site",
        ):
            return Refused(403, "requests of other sites are not answered")
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length[:20]) > self._limits.body:
            return _too_large(self._limits.body)
        path = scope["path"]
        if self._token is None or path in OPEN or path.startswith("/static/"):
            return None
        given = headers.get(b"authorization", "")
        expected = f"Bearer {self._token}"
        if hmac.compare_digest(given.encode("latin-1"), expected.encode("utf-8")):
            return None
        return Refused(401, "this server wants its token: Authorization: Bearer TOKEN")


def _too_large(most: int) -> Refused:
    return Refused(413, f"a body should have at most {most} bytes; shrink the pictures")


class _Body:
    """The parts of a body, counted up to a limit."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._total, self._ended = receive, most, 0, False

    async def __call__(self) -> Message:
        message = await self._part()
        if self._total > self._most:
            raise _too_large(self._most)
        return message

    async def drain(self, seconds: float) -> None:
        """Reads what is left and forgets it: a client that still writes would not hear why not."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._ended and self._total < DRAINED * self._most:
                    await self._part()

    async def _part(self) -> Message:
        message = await self._receive()
        self._total += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        return message


def _host(value: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = value.rpartition(":")
    plain = name if colon and port.isdigit() else value
    return plain.strip("[]").lower()


def _name(scope: Scope) -> str:
    """The route of a path, so that what clients invent makes no new counters."""
    path = scope["path"]
    if path.startswith("/items/"):
        return "/items/{id}/thumbnail"
    if path.startswith("/static/"):
        return "/static"
    known = (*OPEN, "/search", "/embed", "/generate", "/info", "/metrics")
    return path if path in known else "other"


async def _refuse(refusal: Refused, send: Send) -> None:
    body = json.dumps({"error": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Args:
        waiting: how many requests are being read, wait or are answered
        rows: how many rows the index has
    """

    def __init__(self, waiting: Callable[[], int], rows: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fourm_requests", "Requests by path and status.", ["path", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "fourm_request_seconds", "From the head of a request to its answer.", ["path"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._sizes = Histogram(
            "fourm_batch_queries", "Queries answered together.", buckets=SIZES,
            registry=self._registry,
        )  # fmt: skip
        Gauge(
            "fourm_requests_waiting", "Read, waiting or being answered.", registry=self._registry
        ).set_function(waiting)
        Gauge("fourm_index_rows", "Rows of the index.", registry=self._registry).set_function(rows)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """One request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, size: int) -> None:
        """Queries that were answered together."""
        self._sizes.observe(size)

    def text(self) -> tuple[bytes, str]:
        """All of it, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
