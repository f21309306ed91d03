"""From a stream of items to rows of an index: only what is new or changed is embedded.

Every committed row carries the hash of its file's bytes, so a run that was killed is continued by
running it again. Embedding goes in blocks of ``batch_size`` items counted along the stream, and a
commit holds whole blocks: a continued run forms the very batches that an uninterrupted one forms.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from fourm_lite.errors import ConfigError, ShapeError, check_most
from fourm_lite.modalities.pictures import MAX_PIXELS, open_rgb
from fourm_lite.photos.columns import photo_facts
from fourm_lite.photos.item import Item, Skipped, split_uri
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.loading import (
    Decode,
    Facts,
    Keys,
    KnownRows,
    Loaded,
    Loader,
    columns_of,
    key_of,
    keys_of,
    no_facts,
)

Embed = Callable[[list[Any]], Any]
"""n pictures -> float32[n, E]; codes [n, T] for a codes-only index; or the pair of both."""

COMMIT_ROWS = 512
COMMIT_SECONDS = 30.0
"""A slow embedder commits after this long, however few rows wait."""


@dataclass
class IngestReport:
    """What a run did; also what ``progress`` is shown after every block.

    Units:
        ``updated`` rows kept their vector and got new columns; ``missing`` rows are in the index
        but not in the sources (``removed`` counts them where they were to be deleted);
        ``left_empty`` are values that do not fit their column, of rows that are in the index
    """

    seen: int = 0
    added: int = 0
    changed: int = 0
    updated: int = 0
    unchanged: int = 0
    missing: int = 0
    removed: int = 0
    unreadable: list[Skipped] = field(default_factory=list)
    left_empty: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.seen / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        lists = {name: getattr(self, name) for name in ("unreadable", "left_empty")}
        told = {n: [{"uri": s.uri, "reason": s.reason} for s in some] for n, some in lists.items()}
        return {**self.__dict__, **told, "rate": self.rate}


def index_items(
    items: Iterable[Item | Skipped],
    embed: Embed,
    index: Index,
    *,
    batch_size: int = 32,
    commit_rows: int = COMMIT_ROWS,
    workers: int = 1,
    prune: bool = False,
    max_pixels: int = MAX_PIXELS,
    short_side: int | None = None,
    decode: Decode | None = None,
    facts: Facts | None = photo_facts,
    progress: Callable[[IngestReport], object] | None = None,
) -> IngestReport:
    """Brings the index up to date with the items; run it again to continue or to refresh.

    Args:
        items: from ``open_sources``
        embed: what makes vectors of pictures
        index: what takes them; columns ``uri``, ``content_hash`` and ``row_hash`` are added
        batch_size: how many items one call of ``embed`` sees at most
        commit_rows: about how many rows one version of the index adds; fewer after 30 seconds
        workers: threads that read and decode
        prune: whether rows whose item is gone are deleted; what a source that could not be read
            whole may still hold is not gone
        max_pixels: larger pictures are refused unread
        short_side: pixels of a photo's short side that ``embed`` needs; see `open_picture`
        decode: what makes of an item's bytes what ``embed`` reads; by default a picture
        facts: columns that an item's bytes tell, where `decode` makes pictures; those that its
            source gives count first
        progress: called after every block with the report so far

    Raises:
        ShapeError: ``embed`` did not give one vector a picture
    """
    check_most(1 << 20, batch_size=batch_size, commit_rows=commit_rows)
    check_most(1024, workers=workers)
    if batch_size < 1 or commit_rows < 1 or workers < 1:
        raise ConfigError("batch_size, commit_rows and workers are at least 1")
    opened = decode or partial(open_rgb, max_pixels=max_pixels, short_side=short_side)
    told = facts if facts is not None and decode is None else no_facts
    known = known_rows(index)
    loader = Loader(known.get, opened, told)
    run = Run(index, embed, max(1, commit_rows // batch_size), loader)
    run.read(items, batch_size, workers, progress)
    remove_gone(index, run.report, known, np.fromiter(run.seen, np.int64), prune)
    run.count_time()
    if progress is not None:
        progress(run.report)
    return run.report


class Run:
    """The state of one run: what the index knew, what was seen, and what waits for a commit."""

    def __init__(
        self,
        index: Index,
        embed: Embed,
        commit_blocks: int,
        loader: Loader,
        taken: Iterable[int] = (),
    ) -> None:
        self.report = IngestReport()
        self.seen: dict[int, None] = dict.fromkeys(taken)
        self._index = index
        self._embed = embed
        self._commit_blocks = commit_blocks
        self.load = loader.load
        self._waiting: list[tuple[list[Loaded], Any]] = []
        self._start = self._committed = time.perf_counter()

    def read(
        self,
        items: Iterable[Item | Skipped],
        batch_size: int,
        workers: int,
        progress: Callable[[IngestReport], object] | None = None,
    ) -> None:
        """Reads, embeds and writes all items."""
        with ThreadPoolExecutor(workers) as pool:
            stream = loaded_items(items, self, pool, 2 * batch_size + workers)
            for block in _blocks(stream, batch_size):
                self.take(block)
                if progress is not None:
                    progress(self.report)
        self._commit()
        self.count_time()

    def first_sight(self, item: Item) -> bool:
        """Whether this id was not met before in this run."""
        key = key_of(item.id)
        new = key not in self.seen
        self.seen[key] = None
        return new

    def count_time(self) -> None:
        """Notes how long the run has taken."""
        self.report.seconds = time.perf_counter() - self._start

    def take(self, block: Sequence[Loaded | Skipped]) -> None:
        """Embeds what a block needs; commits when enough blocks wait."""
        block = self.without_strangers(block)
        loaded = [one for one in block if isinstance(one, Loaded)]
        self.report.unreadable += [one for one in block if isinstance(one, Skipped)]
        self.report.seen += len(block)
        self.report.unchanged += sum(one.state == "unchanged" for one in loaded)
        fresh = [one for one in loaded if one.image is not None]
        if fresh:
            made = embedded(self._embed, self._index.manifest.kind, [o.image for o in fresh])
            # what waits for a commit are rows: hundreds of pictures would be gigabytes
            self._waiting.append(([replace(one, image=None) for one in fresh], made))
        self._update([one for one in loaded if one.state == "updated"])
        late = time.perf_counter() - self._committed > COMMIT_SECONDS
        if late or len(self._waiting) >= self._commit_blocks:
            self._commit()
        self.count_time()

    def without_strangers(self, block: Sequence[Loaded | Skipped]) -> Sequence[Loaded | Skipped]:
        """Lists a picture under an id whose old file is still there: two folders, equal names."""
        changed = [one for one in block if isinstance(one, Loaded) and one.state == "changed"]
        if not changed or "uri" not in self._index.columns:
            return block
        ids = [one.item.id for one in changed]
        old = dict(zip(ids, self._index.get(ids, ["uri"]).column(0).to_pylist(), strict=True))

        def judged(one: Loaded | Skipped) -> Loaded | Skipped:
            if isinstance(one, Skipped) or one.state != "changed":
                return one
            before = old[one.item.id]
            if not before or before == one.item.uri:
                return one
            if not split_uri(before)[0].exists():
                return one
            return Skipped(
                one.item.uri,
                f"its id {one.item.id!r} is that of {before}; give a prefix, or delete that row",
            )

        return [judged(one) for one in block]

    def _commit(self) -> None:
        self._committed = time.perf_counter()
        if not self._waiting:
            return
        rows = [one for block, _ in self._waiting for one in block]
        names = self._waiting[0][1]
        parts = {n: np.concatenate([made[n] for _, made in self._waiting]) for n in names}
        self._waiting = []
        self.write(rows, parts)

    def _update(self, rows: list[Loaded]) -> None:
        """New columns for old pictures: the vector is taken from the index."""
        if not rows:
            return
        ids = [one.item.id for one in rows]
        if self._index.manifest.kind == "codes":
            self.write(rows, {"codes": self._index.codes(ids)})
            return
        vectors = self._index.vectors(ids)
        coded = [False] * len(rows)
        if "codes" in self._index.columns:
            coded = self._index.get(ids, ["codes"]).column(0).is_valid().to_pylist()
        for has_codes in (False, True):  # rows of both kinds may lie in one index
            places = [i for i, mine in enumerate(coded) if mine is has_codes]
            if places:
                some = [ids[i] for i in places]
                parts: dict[str, Any] = {"vectors": vectors[places]}
                parts |= {"codes": self._index.codes(some)} if has_codes else {}
                self.write([rows[i] for i in places], parts)

    def write(self, rows: list[Loaded], parts: Mapping[str, Any]) -> None:
        """Writes rows together, or in halves where the columns of one do not fit."""
        try:
            self._put(rows, parts, columns_of(rows))
        except (ConfigError, ShapeError):
            if len(rows) == 1:
                self._write_fitting(rows[0], parts)
                return
            middle = len(rows) // 2
            for half in (slice(None, middle), slice(middle, None)):
                self.write(rows[half], {name: part[half] for name, part in parts.items()})
            return
        self._count(rows)

    def _write_fitting(self, row: Loaded, parts: Mapping[str, Any]) -> None:
        """Writes a row without the values that do not fit their columns; these are listed."""
        columns = columns_of([row])
        kept = {name: columns.pop(name) for name in ("uri", "content_hash")}
        refused = []
        try:
            self._put([row], parts, kept)  # without row_hash: a stop from here on is made good
            for name in [n for n in columns if n != "row_hash"]:
                try:
                    self._put([row], parts, {**kept, name: columns[name]})
                    kept[name] = columns[name]
                except (ConfigError, ShapeError) as error:
                    refused.append(Skipped(row.item.uri, str(error)))
            self._put([row], parts, {**kept, "row_hash": columns["row_hash"]})
        except (ConfigError, ShapeError) as error:
            self.report.unreadable.append(Skipped(row.item.uri, str(error)))
            return
        self.report.left_empty += refused
        self._count([row])

    def _put(
        self, rows: Sequence[Loaded], parts: Mapping[str, Any], columns: Mapping[str, Any]
    ) -> None:
        ids = [one.item.id for one in rows]
        self._index.upsert(ids, parts.get("vectors"), codes=parts.get("codes"), **columns)

    def _count(self, rows: Sequence[Loaded]) -> None:
        for one in rows:
            setattr(self.report, one.state, getattr(self.report, one.state) + 1)


def remove_gone(
    index: Index, report: IngestReport, known: KnownRows, seen: Keys, prune: bool
) -> None:
    """Counts rows whose item is gone, and deletes them where that is wanted and certain."""
    keys = np.setdiff1d(known.ids, seen)
    report.missing = len(keys)
    if not prune or not len(keys):
        return
    gone: list[Any] = []
    for batch in index.scan([n for n in ("id", "uri") if n in index.columns]):
        is_gone = np.isin(keys_of(batch.column("id").to_pylist()), keys)
        rows = batch.take(np.flatnonzero(is_gone)).to_pydict()
        for name, uri in zip(rows["id"], rows.get("uri") or [""] * len(rows["id"]), strict=True):
            # What a source that was left out, in part or whole, may still hold is not gone.
            if not uri or not any(one.may_hide(uri) for one in report.unreadable):
                gone.append(name)
    if gone and not len(seen):
        raise ConfigError(
            f"the sources are empty, and prune would delete all {len(gone)} rows; "
            "check the paths, or delete the index"
        )
    report.removed = index.delete(gone) if gone else 0


def embedded(embed: Embed, kind: str, images: list[Any]) -> dict[str, Any]:
    """What an embedder makes of pictures: `vectors`, `codes` or both.

    Raises:
        ShapeError: it did not give one of each a picture
    """
    made = embed(images)
    if isinstance(made, tuple):
        parts = dict(zip(("vectors", "codes"), made, strict=True))
    else:
        parts = {"codes" if kind == "codes" else "vectors": made}
    arrays = {name: np.asarray(part) for name, part in parts.items()}
    for name, part in arrays.items():
        if len(part) != len(images):
            raise ShapeError(f"embed gave {len(part)} {name} for {len(images)} pictures")
    return arrays


def known_rows(index: Index) -> KnownRows:
    """Hashes of what is in the index already."""
    present = index.columns
    names = [name for name in ("id", "content_hash", "row_hash") if name in present]
    return KnownRows.of(index.scan(names) if names else [])


def loaded_items(
    items: Iterable[Item | Skipped], run: Run, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Loaded | Skipped]:
    """Items after reading, in the order of the stream, at most ``ahead`` of them in memory."""
    queue: deque[Future[Loaded | Skipped] | Skipped] = deque()
    for item in items:
        if isinstance(item, Skipped):
            queue.append(item)
        elif not run.first_sight(item):
            queue.append(Skipped(item.uri, f"the id {item.id!r} came before; give it another"))
        else:
            queue.append(pool.submit(run.load, item))
        if len(queue) > ahead:
            yield _result(queue.popleft())
    while queue:
        yield _result(queue.popleft())


def _result(one: Future[Loaded | Skipped] | Skipped) -> Loaded | Skipped:
    return one if isinstance(one, Skipped) else one.result()


def _blocks(stream: Iterable[Loaded | Skipped], size: int) -> Iterator[list[Loaded | Skipped]]:
    """The stream in blocks of a size; the last may be smaller."""
    block: list[Loaded | Skipped] = []
    for one in stream:
        block.append(one)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
