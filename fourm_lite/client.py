"""Asks a server that `fourm-lite serve` started; the standard library and NumPy are enough.

client = SearchClient("http://127.0.0.1:8000")
hits = client.search("a dog on a beach", image="photo.jpg", k=5)
print(hits.ids, hits.scores)
"""

from __future__ import annotations

import base64
import http.client
import json
import queue
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.reading.regular import read_photo
from fourm_lite.search.index.hits import Hits
from fourm_lite.unit import Floats

Picture = str | Path | bytes
_OWN = ("rank", "id", "score")


class ServerError(FourMError):
    """What the server answered instead of what was asked for; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SearchClient:
    """A server's searches, vectors and photos; threads may share one client.

    Args:
        url: where the server is
        token: what it was started with, if it was
        timeout: seconds to wait for an answer

    Raises:
        ConfigError: the url is none of http or https
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"url should be http://HOST:PORT, got {url!r}")
        self._host, self._port, self._timeout = parts.hostname, parts.port, timeout
        self._kind: type[http.client.HTTPConnection] = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._start = parts.path.rstrip("/")
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """Closes what is open; a later request opens anew."""
        _close_all(self._idle)

    def search(
        self,
        text: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        k: int = 10,
        **more: Any,
    ) -> Hits:
        """The rows that answer best, as `Search` gives them.

        Args:
            text: words
            image: a picture: a file of this machine, or bytes
            k: how many
            more: other fields of `POST /search`: like, not_text, where, weights, rerank, ...

        Raises:
            ServerError: the server refused, and said why
        """
        if "not_image" in more:
            more["not_image"] = _pictures(more["not_image"])
        body = {"text": text, "image": _pictures(image), "k": k, **more}
        return _hits(self._post("/search", body))

    def embed(self, items: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]) -> Floats:
        """Unit vectors float32[N, E] of texts and of items such as {"image": "a.jpg"}."""
        some = [items] if isinstance(items, str | Mapping) else items
        named = [{"text": item} if isinstance(item, str) else item for item in some]
        plain = [
            {n: _pictures(v) if n in ("image", "rgb") else v for n, v in item.items()}
            for item in named
        ]
        return np.array(self._post("/embed", {"items": plain})["vectors"], np.float32)

    def generate(
        self, *, text: str | None = None, image: Picture | None = None, **more: Any
    ) -> dict[str, Any]:
        """Name of a modality -> its tokens, text, value and picture (a data: URL)."""
        body = {"text": text, "image": _pictures(image), **more}
        outputs: dict[str, Any] = self._post("/generate", body)["outputs"]
        return outputs

    def thumbnail(self, name: str | int, side: int = 256) -> bytes:
        """The photo of a row as a JPEG."""
        return self._ask("GET", f"/items/{quote(str(name), safe='')}/thumbnail?side={side}")

    def info(self) -> dict[str, Any]:
        """Rows, columns, what the model reads and makes."""
        return _json(self._ask("GET", "/info"))

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in body.items() if value is not None}
        return _json(self._ask("POST", path, json.dumps(given).encode()))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of an answer; a connection that the server closed meanwhile is made anew."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._new()
        try:
            status, data = self._once(connection, method, path, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            connection = self._new()
            status, data = self._once(connection, method, path, body)
        self._idle.put(connection)
        if status != 200:
            raise ServerError(status, _sentence(status, data))
        return data

    def _new(self) -> http.client.HTTPConnection:
        return self._kind(self._host, self._port, timeout=self._timeout)

    def _once(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._start + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError as error:
            raise ServerError(
                0, f"no server answers at {self._host}, port {self._port}; is it started? "
                "(fourm-lite serve IDX)",
            ) from error  # fmt: skip
        except BaseException:
            connection.close()
            raise


def _close_all(idle: queue.LifoQueue[http.client.HTTPConnection]) -> None:
    while not idle.empty():
        idle.get_nowait().close()


def _pictures(given: Any) -> Any:
    """Pictures in base64; files are read here, on the client's machine."""
    if given is None:
        return None
    if isinstance(given, list | tuple):
        return [_pictures(one) for one in given]
    data = given if isinstance(given, bytes) else read_photo(Path(given).expanduser())
    return base64.b64encode(data).decode("ascii")


def _hits(answer: Mapping[str, Any]) -> Hits:
    rows = answer["hits"]
    scores = np.array([np.nan if r["score"] is None else r["score"] for r in rows], np.float32)
    names = dict.fromkeys(name for row in rows for name in row if name not in _OWN)
    columns = {name: [row.get(name) for row in rows] for name in names}
    sure = {name: answer[name] for name in ("p_right", "good_match", "p_means")}
    return Hits([row["id"] for row in rows], scores, columns, **sure)


def _json(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    assert isinstance(found, dict)
    return found


def _sentence(status: int, data: bytes) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}"
