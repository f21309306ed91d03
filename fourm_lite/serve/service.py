"""What the server does, without HTTP: questions of many clients, answered by one open `Search`.

They are answered together, by one forward pass and one product for all of them: a thread of its own
takes what waits, at most a few milliseconds after the first. While it works the next ones gather,
so that batches grow with the load and one client alone hardly waits.

A photo of the index is asked for by its id, which is looked up in the index and never in the file
system. The `uri` of its row is opened only where the row also holds a hash of the photo's bytes,
and shown only if that still fits: neither a file that took a photo's place nor one that a strange
index names can be seen.
"""

from __future__ import annotations

import base64
import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.modalities.pictures import open_rgb, png, thumbnail
from fourm_lite.photos.sources import read_uri
from fourm_lite.search.engine import Ask, Search, require_same_space
from fourm_lite.search.index.loading import content_hash
from fourm_lite.search.index.manifest import Manifest
from fourm_lite.search.space import Predictor
from fourm_lite.serve.fields import (
    EMBED,
    GENERATE,
    SEARCH,
    Fields,
    Limits,
    Refused,
    read_fields,
    required,
)
from fourm_lite.serve.questions import NAMES, known_id, model_values, search_question
from fourm_lite.unit import Floats

log = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Job(Generic[Question, Answer]):
    question: Question
    answer: Future[Answer] = field(default_factory=Future)


class Batcher(Generic[Question, Answer]):
    """Answers questions in batches, in the order in which they came.

    Args:
        answer_all: as many answers as questions; may refuse all of them for the sake of one
        most: questions of a batch
        window: seconds that the first of a batch waits for others
        seen: told the size of every batch
    """

    def __init__(
        self,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer]],
        *,
        most: int,
        window: float,
        seen: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._answer_all, self._most, self._window, self._seen = answer_all, most, window, seen
        self._waiting: queue.SimpleQueue[_Job[Question, Answer] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fourm-lite batches", daemon=True)
        self._thread.start()

    def submit(self, question: Question) -> Future[Answer]:
        """The answer to come; one that is cancelled before its turn is never worked on."""
        job: _Job[Question, Answer] = _Job(question)
        self._waiting.put(job)
        return job.answer

    def close(self) -> None:
        """Ends the thread when the questions that wait are answered."""
        self._waiting.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (jobs := self._gathered()) is not None:
            alive = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if alive:
                self._seen(len(alive))
                self._answer(alive)

    def _gathered(self) -> list[_Job[Question, Answer]] | None:
        """The next batch; None at the end."""
        first = self._waiting.get()
        jobs = [] if first is None else [first]
        until = time.monotonic() + self._window
        while first is not None and len(jobs) < self._most:
            try:
                job = self._waiting.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            jobs.append(job)
        return jobs or None

    def _answer(self, jobs: Sequence[_Job[Question, Answer]]) -> None:
        """Answers a batch; a question that spoils it is found by halving, and refused alone."""
        try:
            answers = self._answer_all([job.question for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                middle = len(jobs) // 2
                self._answer(jobs[:middle])
                self._answer(jobs[middle:])
                return
            if not isinstance(error, FourMError):
                log.exception("a request could not be answered")
            jobs[0].answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)


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


SIDES = (64, 128, 256, 512, 1024)
HELD = 2_000
"""Thumbnails that are kept, of some 15 kB each."""


class Photos:
    """Thumbnails of an index's photos; those asked for last are kept."""

    def __init__(self, search: Search, pixels: int) -> None:
        self._search, self._pixels = search, pixels
        self._held = lru_cache(maxsize=HELD)(self._drawn)

    def thumbnail(self, name: str, side: int) -> bytes:
        """A JPEG of at most `side` pixels a side.

        Raises:
            Refused: there is no such row, or its photo is not what was indexed
        """
        if side not in SIDES:
            raise Refused(400, f"side is one of {', '.join(map(str, SIDES))}, got {side}")
        uri, mark = self._place(name)
        return self._held(uri, mark, side)

    def _place(self, name: str) -> tuple[str, int]:
        index = self._search.index
        if not {"uri", "content_hash"} <= set(index.columns):
            raise Refused(
                404, "the rows of this index do not tell their photos; make it by fourm-lite index"
            )
        try:
            row: dict[str, Any] = index.get(
                [known_id(name, self._search)], ["uri", "content_hash"]
            ).to_pylist()[0]
        except FourMError:
            raise Refused(404, f"the index has no row {name[:80]!r}") from None
        if not isinstance(row["uri"], str) or row["content_hash"] is None:
            raise Refused(404, f"the row {name[:80]!r} has no photo")
        return row["uri"], row["content_hash"]

    def _drawn(self, uri: str, mark: int, side: int) -> bytes:
        try:
            data = read_uri(uri)
        except (FourMError, OSError):
            raise Refused(404, "the photo of this row cannot be read any more") from None
        if content_hash(data) != mark:
            raise Refused(404, "the photo of this row has changed since it was indexed")
        out = io.BytesIO()
        picture = thumbnail(open_rgb(data, max_pixels=self._pixels), side)
        picture.save(out, "JPEG", quality=85)
        return out.getvalue()
