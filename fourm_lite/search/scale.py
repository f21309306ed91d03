"""An index made in parts, by as many processes as one likes: the rows of `index_items`.

Each process runs `index_items`' own `Run` over a part, and leaves the new rows as files of the
table and a note of them in `IDX/parts`; one commit makes all of them visible, in the order of the
sources. A note is good as long as its part, the model and the rows of the index are those that it
was made of, so that a run which was stopped goes on, and nothing else is ever taken for its part.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from operator import iadd
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from fourm_lite.cluster import Cluster
from fourm_lite.errors import FourMError
from fourm_lite.io.files import alone, remove_leftovers, write_whole
from fourm_lite.io.strict_json import as_object, parse_json
from fourm_lite.photos.item import Skipped
from fourm_lite.photos.source_parts import Part
from fourm_lite.reading.regular import Budget, budget, set_budget
from fourm_lite.reading.remote import is_remote, place, reason
from fourm_lite.search.index import uncommitted as files
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.ingest import Embed, IngestReport, Run, known_rows, remove_gone
from fourm_lite.search.index.loading import Keys, KnownRows, Loader
from fourm_lite.search.index.storage import Rows
from fourm_lite.search.space import Space

FOLDER = "parts"
READERS = 2
"""Threads that read in each process."""
Value = tuple[Part, Keys]
"""A part, and the ids that came before it."""
RunAll = Callable[[Sequence[Value], KnownRows], Iterator[tuple[int, "Staged"]]]
"""Values, and what the index holds -> the number of each and what was made of it, in any order."""
Progress = Callable[[IngestReport], object]


@dataclass(frozen=True)
class Engine:
    """Where photos are embedded, and what opens the space there: a `partial` of `open_space`."""

    cluster: Cluster
    open_space: Callable[[], Space]


@dataclass(frozen=True)
class Job:
    """What is the same for all parts. It travels to other processes, so it is small.

    Args:
        index: its address
        opened: opens what embeds: the embedding, and what reads an item
        told: what the vectors are of, besides: another text is another job
        batch_size: photos that are embedded at once
        limits: on what is read at once
    """

    index: str
    opened: Callable[[], tuple[Embed, Callable[[KnownRows], Loader]]]
    told: str = ""
    batch_size: int = 32
    limits: Budget = field(default_factory=budget)


@dataclass(frozen=True)
class Staged:
    """What was made of a part.

    Units:
        stamp: of the part's files; seen: hashes of its ids, in the order of the source
        fresh, replaced: files of new rows, and of rows whose id the index holds
    """

    stamp: str
    seen: Keys
    report: IngestReport
    fresh: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text of its note."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        seen = base64.b64encode(self.seen.tobytes()).decode()
        return json.dumps({**told, "seen": seen, "report": asdict(self.report)})

    @classmethod
    def from_json(cls, text: str, source: str) -> Staged:
        """That of a note."""
        told = as_object(parse_json(text, source), source)
        report = dict(told["report"])
        for name in ("unreadable", "left_empty"):
            report[name] = [Skipped(**one) for one in report[name]]
        return cls(
            told["stamp"], np.frombuffer(base64.b64decode(told["seen"]), np.int64),
            IngestReport(**report), tuple(told["fresh"]), tuple(told["replaced"]),
        )  # fmt: skip


class Stager:
    """Makes staged rows of parts: one process of a run.

    Args:
        job: what it works on
        change: changes the columns of the table for all processes, one change after the other;
            None where there is no other process
    """

    def __init__(self, job: Job, change: Callable[..., None] | None = None) -> None:
        set_budget(**asdict(job.limits))
        self._job, self._index = job, _Staging(job.index, change)
        self._notes = place(f"{job.index}/{FOLDER}")
        self._there = {note.name for note in _notes_in(self._notes)}
        self._embed, self._loader = job.opened()

    def __call__(self, value: Value, known: KnownRows) -> Staged:
        """The new rows of a part, found or made."""
        (part, taken), index = value, self._index
        stamp, note = part.stamp(), self._note(part, taken, known)
        if (found := self._found(note)) is not None and found.stamp == stamp:
            return found
        index.tables = []
        run = Run(index, self._embed, 1 << 20, self._loader(known), taken.tolist())
        run.read(part.items(), self._job.batch_size, READERS)
        seen = np.fromiter(run.seen, np.int64)[len(taken) :]
        staged = Staged(stamp, seen, run.report, *index.staged(known))
        _write(note, staged.to_json())
        self._there.add(note.name)
        return staged

    def _found(self, note: Path) -> Staged | None:
        """What a note tells, if it is there and all of its rows are."""
        if note.name not in self._there:  # spares a store a question for each part
            return None
        with contextlib.suppress(OSError, FourMError, KeyError, TypeError, ValueError):
            staged, rows = Staged.from_json(note.read_text(), str(note)), self._index.rows
            if all(files.is_whole(rows, one) for one in staged.fresh + staged.replaced):
                return staged
        return None

    def _note(self, part: Part, taken: Keys, known: KnownRows) -> Path:
        """Where the note of a part stands; a part of another run has another."""
        first = [str(part.shard or ""), str(part.root), part.prefix]
        told = [first, [one.uri for one in part.found], taken.tolist(), known.digest]
        text = json.dumps([told, self._job.told]).encode("utf-8", "surrogateescape")
        return self._notes / f"{hashlib.sha256(text).hexdigest()[:32]}.json"


class _Columns(Rows):
    """The table in the one process that changes its columns, one change after the other."""

    def change(self, method: str, *given: Any) -> None:
        """Does what one of the others asks for; a change that was stopped is ended first."""
        if self.newest().exists:
            self.mend()
        getattr(self, method)(*given)


class _SharedRows(Rows):
    """The table in the others."""

    def __init__(self, path: str, change: Callable[..., None]) -> None:
        super().__init__(path)
        for name in ("create", "add_columns", "widen", "mend"):
            setattr(self, name, partial(change, name))


class _Staging(Index):
    """An index whose new rows wait for their commit."""

    def __init__(self, path: str, change: Callable[..., None] | None) -> None:
        super().__init__(path, Index.open(path).manifest)
        if change is not None:
            self._handle.rows = _SharedRows(path, change)
        self.tables: list[Any] = []

    def upsert(
        self,
        ids: Iterable[Any],
        vectors: Any = None,
        *,
        codes: Any = None,
        space: str | None = None,
        **columns: Any,
    ) -> tuple[int, int]:
        """Checks rows as an index does, and keeps them."""
        self.tables.append(self.prepare(ids, vectors, codes, space, columns))
        return len(self.tables[-1]), 0

    def staged(self, known: KnownRows) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Files of the rows that are new, and of those that replace others."""
        import pyarrow as pa

        from fourm_lite.search.index.rows import align

        if not self.tables:
            return (), ()
        schema = self.rows.newest().schema
        table = pa.concat_tables([align(one, schema) for one in self.tables]).combine_chunks()
        ids = table.column("id").to_pylist()
        last = {name: number for number, name in enumerate(ids)}  # a row may be written twice
        kept = [number for number, name in enumerate(ids) if last[name] == number]
        is_new = np.array([known.get(ids[number]) is None for number in kept], bool)
        fresh, replaced = (table.take(np.array(kept)[mine]) for mine in (is_new, ~is_new))
        return tuple(files.stage(self.rows, fresh)), tuple(files.stage(self.rows, replaced))


def index_parts(
    run_all: RunAll,
    parts: Iterable[Part],
    index: Index,
    *,
    prune: bool = False,
    progress: Progress | None = None,
) -> tuple[IngestReport, Keys]:
    """Brings an index up to date with all parts; also gives the hashes of all ids, in order.

    Args:
        run_all: lets `Stager`s make the rows
        parts: in the order of the sources
        index: what takes them
        prune: whether rows whose item is gone are deleted
        progress: called after every part with the report so far

    Raises:
        FourMError: another process wrote to the index meanwhile; nothing was added
    """
    start, known, before = time.perf_counter(), known_rows(index), index.rows.newest().version
    some, so_far = list(parts), IngestReport()
    done: dict[int, Staged] = {}
    for number, staged in run_all([(part, np.empty(0, np.int64)) for part in some], known):
        done[number] = staged
        _add(so_far, staged.report, start)
        if progress is not None:
            progress(so_far)
    again = list(_repeated(done).items())
    for number, staged in run_all([(some[n], taken) for n, taken in again], known):
        done[again[number][0]] = staged
    in_order, report = [done[number] for number in range(len(some))], IngestReport()
    _make_visible(index, in_order, known, before)
    seen = np.concatenate([np.empty(0, np.int64), *(staged.seen for staged in in_order)])
    for staged in in_order:
        _add(report, staged.report, start)
    remove_gone(index, report, known, seen, prune)
    report.seconds = time.perf_counter() - start
    if progress is not None:
        progress(report)
    return report, seen


def index_parts_on(
    cluster: Cluster, parts: Iterable[Part], index: Index, job: Job, **options: Any
) -> tuple[IngestReport, Keys]:
    """`index_parts` by the processes of a cluster, alone in the index; leaves nothing but rows.

    Raises:
        FourMError: see `index_parts`; another process is at work in the folder; or a process died
            again and again
    """
    notes = place(f"{index.path}/{FOLDER}")
    with _alone(notes), cluster.connected() as ray:
        # Its columns are changed by one process, itself an actor.
        free = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
        name = f"columns of {uuid4().hex}"  # a handle would not be a small argument, see `cluster`
        columns = ray.remote(**free)(_Columns).options(name=name).remote(index.path)
        crew = cluster.started(ray, partial(Stager, job, partial(_ask, name)))
        found = index_parts(crew.run, parts, index, **options)
        del columns
        finish(index)
    return found


def finish(index: Index) -> None:
    """Removes files that no version names, and all notes: those of stopped runs, too."""
    notes = place(f"{index.path}/{FOLDER}")
    files.sweep(index.rows)
    _clear(notes)
    if not is_remote(notes):
        with contextlib.suppress(OSError):  # not made, or not empty
            notes.rmdir()


def _ask(columns: str, method: str, *given: Any) -> None:
    import ray

    ray.get(ray.get_actor(columns).change.remote(method, *given))


def _repeated(done: Mapping[int, Staged]) -> dict[int, Keys]:
    """Of each part that holds ids of an earlier one: these ids."""
    numbers = sorted(done)
    every = np.concatenate([np.empty(0, np.int64), *(done[n].seen for n in numbers)])
    owner = np.repeat(numbers, [len(done[n].seen) for n in numbers])
    _, first = np.unique(every, return_index=True)
    again = np.setdiff1d(np.arange(len(every)), first)
    return {int(n): every[again[owner[again] == n]] for n in np.unique(owner[again])}


def _make_visible(index: Index, parts: Sequence[Staged], known: KnownRows, version: int) -> None:
    """One commit of the new rows; rows that replace others follow."""
    rows = index.rows
    if rows.newest().version != version and known_rows(index).digest != known.digest:
        raise FourMError(
            "another process wrote to the index while rows were made; nothing was added, run the "
            "command again"
        )
    fresh: list[str] = []
    ids = files.field_ids(rows)
    for one in (one for part in parts for one in part.fresh):
        # A column got another type after these rows were written.
        fresh += [one] if files.fits(ids, one) else files.stage(rows, files.read(rows, one))
    files.commit(rows, fresh)
    for one in (one for part in parts for one in part.replaced):
        rows.upsert(files.read(rows, one))


def _add(total: IngestReport, report: IngestReport, start: float) -> None:
    for one in fields(report):
        setattr(total, one.name, iadd(getattr(total, one.name), getattr(report, one.name)))
    total.seconds = time.perf_counter() - start


def _alone(notes: Path) -> AbstractContextManager[None]:
    return nullcontext() if is_remote(notes) else alone(notes)


def _notes_in(notes: Path) -> list[Path]:
    """All notes, those of other runs too."""
    if is_remote(notes):
        notes.fs.invalidate_cache()  # type: ignore[attr-defined]  # others write there
    return [one for one in notes.iterdir() if one.suffix == ".json"] if notes.exists() else []


def _clear(notes: Path) -> None:
    """Removes all notes."""
    if not is_remote(notes):
        remove_leftovers(notes, alone=True)  # of killed workers, while they wrote
    found = _notes_in(notes)
    if found and is_remote(notes):
        paths = [note.path for note in found]  # type: ignore[attr-defined]
        notes.fs.rm(paths)  # type: ignore[attr-defined]  # many by one request
        return
    for note in found:
        note.unlink()


def _write(note: Path, text: str) -> None:
    if not is_remote(note):
        write_whole(note, text)
        return
    try:
        note.write_text(text)  # an object is there when its upload is complete
    except Exception as error:  # clients of stores have no common base
        raise FourMError(f"{note} cannot be written: {reason(error)}") from error
