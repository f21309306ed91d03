"""What the server does, without HTTP: questions of many clients, answered by one open `Search`."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import png
from fourm_lite.search.engine import Ask, Search, require_same_space
from fourm_lite.search.index.exact import Floats
from fourm_lite.search.index.manifest import Manifest
from fourm_lite.search.space import Predictor
from fourm_lite.serve.batches import Batcher
from fourm_lite.serve.errors import Refused
from fourm_lite.serve.fields import EMBED, GENERATE, SEARCH, Fields, read_fields, required
from fourm_lite.serve.limits import Limits
from fourm_lite.serve.photos import Photos
from fourm_lite.serve.questions import NAMES, model_values, search_question

Told = dict[str, Any]
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Work:
    """What is to be generated."""

    item: Mapping[str, Any]
    targets: Sequence[str]
    seed: int
    tell: Tell


class Service:
    """An open index and its model, shared by all clients.

    Args:
        search: the index, with its model
        limits: what one request may cost
    """

    def __init__(self, search: Search, limits: Limits | None = None) -> None:
        self.search, self.limits = search, limits or Limits()
        self.photos = Photos(search, 1 << 26)
        self.seen: Callable[[int], None] = lambda _: None
        self._manifest: Manifest | None = None
        self._lock = threading.Lock()
        most, window = self.limits.batch, self.limits.window
        self._searches: Batcher[Ask, Told] = Batcher(
            self._hits, most=most, window=window, seen=lambda n: self.seen(n)
        )
        self._embeddings: Batcher[list[dict[str, Any]], Floats] = Batcher(
            self._vectors, most=most, window=window
        )
        self._generations: Batcher[Work, dict[str, Any]] = Batcher(
            self._generated, most=1, window=0.0
        )

    def warm_up(self) -> None:
        """One query, so that the first client does not wait for files to be opened.

        Raises:
            FourMError: the index cannot be searched with its model
        """
        self._require_space()
        if len(self.search.index):
            vector = np.zeros(self.search.space.width, np.float32)
            vector[0] = 1
            self.search.index.search(vector, 1)

    # Search ------------------------------------------------------------------------------------

    def question(self, body: Mapping[str, Any]) -> Ask:
        """The question of a body; see `search_question`."""
        return search_question(read_fields(body, SEARCH, self.limits), self.search, self.limits)

    def hits(self, ask: Ask) -> Future[Told]:
        """The answer to come, as `fourm-lite search --json` prints it."""
        return self._searches.submit(ask)

    def _hits(self, asks: Sequence[Ask]) -> list[Told]:
        self._require_space()
        found = self.search.many(asks)
        index = self.search.index
        facts = {"index": index.path, "space": index.manifest.space, "rows": len(index)}
        return [
            {**facts, "query": ask.query.title, "compose": ask.query.way, **hits.to_json()}
            for ask, hits in zip(asks, found, strict=True)
        ]

    def _require_space(self) -> None:
        """Refuses an index that was made anew by another model while it is served."""
        manifest = self.search.index.manifest
        with self._lock:
            if manifest is self._manifest:
                return
            try:
                require_same_space(manifest, self.search.space)
            except FourMError as error:
                raise Refused(503, f"the index was made anew by another model: {error}") from error
            self._manifest = manifest

    # Vectors -----------------------------------------------------------------------------------

    def items(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The items of a body to embed."""
        fields = read_fields(body, EMBED, self.limits)
        single = _single(fields)
        required(fields, "items", "text", "image")
        if single and "items" in fields:
            raise ConfigError("'items' or 'text' and 'image' of a single one are given, not both")
        items = [single] if single else fields["items"]
        return [model_values(item, self.search.space, self.limits) for item in items]

    def vectors(self, items: list[dict[str, Any]]) -> Future[Floats]:
        """Unit vectors float32[N, E] to come, in the space of the index."""
        return self._embeddings.submit(items)

    def _vectors(self, many: Sequence[list[dict[str, Any]]]) -> list[Floats]:
        flat = [item for items in many for item in items]
        vectors = self.search.space.encode_query(flat)
        return np.split(vectors, np.cumsum([len(items) for items in many])[:-1])

    # Generation --------------------------------------------------------------------------------

    def work(self, body: Mapping[str, Any], tell: Tell) -> Work:
        """What a body asks to generate; `tell` hears of each step."""
        fields = read_fields(body, GENERATE, self.limits)
        config = self._model().pipe.model.config
        given = {**fields.get("given", {}), **_single(fields)}
        if not given:
            required({}, *NAMES, "given")
        item = model_values(given, self.search.space, self.limits)
        known = {m.name: m for m in config.inputs}
        read = {_stem(key, known) for key in item}
        usual = [m.name for m in config.outputs if _short(m.name) not in read]
        return Work(item, fields.get("targets", usual), fields.get("seed", 0), tell)

    def generated(self, work: Work) -> Future[dict[str, Any]]:
        """The outputs to come, name -> what `Generated.to_json` gives and its picture."""
        return self._generations.submit(work)

    def _model(self) -> Predictor:
        model = self.search.space.predictor
        if model is None:
            raise ConfigError(
                "the model of this index embeds and does not generate; serve an index that a 4M "
                "model made"
            )
        return model

    def _generated(self, many: Sequence[Work]) -> list[dict[str, Any]]:
        pipe = self._model().pipe
        return [self._one(pipe, work) for work in many]

    def _one(self, pipe: Any, work: Work) -> dict[str, Any]:
        from fourm_lite.sampling.state import StepResult

        done: dict[str, Any] = {}
        confidence: dict[str, list[Any]] = {}

        def on_step(result: StepResult, number: int, count: int) -> None:
            target = result.step.target
            confidence.setdefault(target, []).append(result.confidence.cpu())
            work.tell({"step": number, "of": count, "target": target})
            if result.step.last:
                made = pipe.write(result.batch, [target], confidence, work.seed, allow_tokens=True)
                done[target] = output_json(made[0][target])
                work.tell({"target": target, "output": done[target]})

        pipe.generate(work.item, work.targets, seed=work.seed, on_step=on_step, allow_tokens=True)
        return {"outputs": done}

    # The server itself ------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What a page needs to know: rows, columns, what the model reads and makes, the limits."""
        index, space = self.search.index, self.search.space
        model = space.predictor
        config = None if model is None else model.pipe.model.config
        hidden = {"vector", "codes", "content_hash", "row_hash"}
        return {
            "rows": len(index),
            "space": index.manifest.space,
            "columns": [name for name in index.columns if name not in hidden],
            "calibrated": index.manifest.calibration is not None,
            "reads": [m.name for m in config.inputs] if config else ["rgb", "caption"],
            "makes": [m.name for m in config.outputs] if config else [],
            "titles": {m.name: m.title for m in config.outputs if m.title} if config else {},
            "limits": {n: getattr(self.limits, n) for n in ("body", "pixels", "k", "rerank")},
        }

    def close(self) -> None:
        """Ends the threads."""
        for batcher in (self._searches, self._embeddings, self._generations):
            batcher.close()


def _single(fields: Fields) -> dict[str, Any]:
    """The words and the one picture of a request.

    Raises:
        ConfigError: there are several pictures
    """
    pictures = fields.get("image", [])
    if len(pictures) > 1:
        raise ConfigError(f"'image' should be one picture here, got {len(pictures)}")
    found = {"text": fields["text"]} if "text" in fields else {}
    return {**found, "image": pictures[0]} if pictures else found


def output_json(made: Any) -> dict[str, Any]:
    """A generated value for a page: its JSON, and its picture as a data: URL."""
    out: dict[str, Any] = made.to_json()
    if not isinstance(made.picture, str):
        out["picture"] = "data:image/png;base64," + base64.b64encode(png(made.picture)).decode()
    return out


def _stem(key: str, known: Mapping[str, Any]) -> str:
    from fourm_lite.pipeline.readers import find_modality

    return _short(find_modality(key, known, role="input"))


def _short(name: str) -> str:
    return name.partition("@")[0].removeprefix("tok_")
