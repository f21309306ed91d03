"""The rows of an index as one Lance table: read, write, retry; the only file that knows Lance
(with `ann.py`).

Every write is one new version of the table. A writer that dies leaves the last version as it was,
and two writers that meet are put one after the other. ``id`` is the table's primary key, so Lance
itself refuses a row that two processes add at the same time.
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.index.drift import (
    EXACT,
    cast_name,
    float_columns,
    holds_nothing,
    missing_fields,
    reaches,
    shared_type,
)
from fourm_lite.search.index.exact import RowIds
from fourm_lite.search.index.lance_calls import (
    UnreadableError,
    is_conflict,
    is_gone,
    lance,
    reading,
    write_error,
)
from fourm_lite.search.index.manifest import is_remote
from fourm_lite.search.index.pins import Pins, age

log = logging.getLogger(__name__)

TABLE = "items"
KEY = b"lance-schema:unenforced-primary-key:position"
"""Field metadata by which Lance knows the key; set at creation, so that no writer misses it."""
ATTEMPTS = 30
KEEP_ALL = timedelta(days=36_500)
"""Longer than any version is old; the engine counts back from now and cannot go much further."""
DRAFT = "_wider_"
"""Before the name of a column that gets another type; names of users cannot begin so."""
BATCH_ROWS = 8192
TAKEN_ROWS = 10_000
MARGIN = timedelta(seconds=2)
"""How much older than what is read a version must be: the engine drops by time, not by number."""

Result = TypeVar("Result")


class Snapshot:
    """One version of a table, which never changes; many threads may read it at once.

    Raises:
        UnreadableError: (every method) the engine cannot read what belongs to the version
    """

    def __init__(self, table: Any = None, version: int = 0) -> None:
        self._table = table
        self.version = version

    @property
    def exists(self) -> bool:
        """Whether there was a table at all."""
        return self._table is not None

    @cached_property
    def schema(self) -> Any:
        """The Arrow schema of the rows."""
        return reading(None, lambda: self._table.schema)

    @property
    def drafts(self) -> list[str]:
        """The columns of a `Rows.widen` that goes on, or was stopped."""
        return [name for name in self.schema.names if name.startswith(DRAFT)]

    @cached_property
    def _all_rows(self) -> int:
        return reading(None, lambda: int(self._table.count_rows()))

    @cached_property
    def with_nan(self) -> frozenset[str]:
        """The columns that hold NaN, as an index of an older version may."""
        names = float_columns(self.schema) if self.exists else []
        tests = {name: f"isnan({name})" for name in names}
        if not tests or not self.count(" OR ".join(tests.values())):
            return frozenset()
        return frozenset(
            n.replace("`", "").lower() for n, test in tests.items() if self.count(test)
        )

    def count(self, where: str | None = None) -> int:
        """How many rows there are, or how many pass the filter."""
        if not self.exists:
            return 0
        if where is None:
            return self._all_rows
        return reading(where, lambda: int(self._table.count_rows(where)))

    def scan(
        self, columns: Sequence[str], where: str | None = None, *, batch_rows: int = BATCH_ROWS
    ) -> Iterator[tuple[RowIds, Any]]:
        """Runs over the rows in batches: their row ids and an Arrow record batch."""
        if not self.exists:
            return

        def ask() -> Any:
            options = {"columns": list(columns), "batch_size": batch_rows, "with_row_id": True}
            return self._table.scanner(filter=where, **options).to_reader()

        reader = reading(where, ask)
        while True:
            batch = reading(where, lambda: next(reader, None))
            if batch is None:
                return
            row_ids = batch.column(batch.schema.names.index("_rowid")).to_numpy()
            yield row_ids, batch.select(list(columns))

    def take(self, row_ids: RowIds, columns: Sequence[str]) -> Any:
        """The rows with these row ids as an Arrow table, in the order of the ids.

        Raises:
            UnreadableError: a row is not there; also as all methods
        """
        wanted = [int(i) for i in row_ids]
        names = list(columns)
        parts = [wanted[i : i + TAKEN_ROWS] for i in range(0, max(len(wanted), 1), TAKEN_ROWS)]
        table = reading(None, lambda: _joined([self._rows_with(p, names) for p in parts]))
        found = table.column("_rowid").to_numpy()
        order = np.argsort(found)
        place = np.searchsorted(found, row_ids, sorter=order)
        place = order[np.minimum(place, max(len(found) - 1, 0))] if len(found) else place
        if len(found) < len(set(wanted)) or not np.array_equal(found[place], row_ids):
            raise UnreadableError(
                f"{len(set(wanted) - set(found.tolist()))} of {len(wanted)} rows are gone from "
                f"version {self.version} of the index; ask again"
            )
        return table.select(list(columns)).take(place)

    def _rows_with(self, row_ids: Sequence[int], names: list[str]) -> Any:
        where = f"_rowid IN ({', '.join(map(str, row_ids))})" if row_ids else "false"
        return self._table.scanner(columns=names, filter=where, with_row_id=True).to_table()

    @cached_property
    def content(self) -> str:
        """A name for these very rows: of the files that hold them and of what was deleted."""

        def ask() -> str:
            parts = [
                (f.fragment_id, [d.path for d in f.data_files()], str(f.deletion_file()))
                for f in self._table.get_fragments()
            ]
            return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

        return reading(None, ask)

    @property
    def handle(self) -> Any:
        """Lance's own dataset at this version, for ``ann.py`` to read."""
        return self._table


class Rows:
    """One Lance table at an address; it may not exist yet. Reads go to a `Snapshot` of it."""

    def __init__(self, path: str, options: Mapping[str, str] | None = None) -> None:
        self.place = f"{path.rstrip('/')}/{TABLE}.lance"
        self.options = dict(options) if options else None
        self._table: Any = None
        self._newest = Snapshot()
        self._lock = threading.RLock()
        self._pins = Pins(None if is_remote(path) else Path(path))

    def pinned(self) -> AbstractContextManager[None]:
        """What is the newest version in the block, or becomes it, is not dropped before its end."""
        return self._pins.reading(self._newest.version)

    def dropping(self) -> AbstractContextManager[int | None]:
        """Keeps out who reads or writes; gives None if nobody is left who does, see `pins`."""
        self._pins.make()
        return self._pins.dropping(int(self.newest().version))

    def newest(self) -> Snapshot:
        """The newest version; the same object as long as nothing was written.

        Raises:
            UnreadableError: the table was there and is not any more
        """
        with self._lock:
            if not self._opened():
                return self._newest
            self._newest = reading(None, self._looked_at)
            return self._newest

    def _looked_at(self) -> Snapshot:
        self._table.checkout_latest()
        version = int(self._table.version)
        if version == self._newest.version:
            return self._newest
        # A table of its own: nobody moves it while a search reads it.
        return Snapshot(self._table.checkout_version(version), version)

    def _opened(self) -> bool:
        """Whether the table is there; looks once more if it was not."""
        if self._table is None:
            self._table = reading(None, self._opened_now)
        return self._table is not None

    def _opened_now(self) -> Any:
        try:
            return lance().dataset(self.place, storage_options=self.options)
        except (ValueError, FileNotFoundError) as error:
            if "not found" not in str(error).lower():
                raise
            return None

    def create(self, schema: Any) -> None:
        """Makes the table with ``id`` as its key, unless another process was faster."""
        import pyarrow as pa

        place = schema.get_field_index("id")
        field = schema.field(place)
        keyed = field.with_metadata({**(field.metadata or {}), KEY: b"1"})
        self._pins.make()
        with self._lock:
            try:
                made = pa.schema(schema.set(place, keyed))
                empty, options = made.empty_table(), self.options
                self._table = lance().write_dataset(empty, self.place, storage_options=options)
            except Exception as error:
                if "exist" not in str(error).lower() or not self._opened():
                    raise write_error(error) from error

    def insert(self, rows: Any) -> int:
        """Adds the rows whose id is new; returns how many these were."""
        return int(self._merge(rows, replace=False)["num_inserted_rows"])

    def upsert(self, rows: Any) -> tuple[int, int]:
        """Adds new rows, replaces those of a known id; returns (inserted, replaced)."""
        result = self._merge(rows, replace=True)
        return int(result["num_inserted_rows"]), int(result["num_updated_rows"])

    def delete(self, where: str) -> int:
        """Deletes the rows that pass the filter; returns how many these were."""
        if not self.newest().exists:
            return 0
        return int(self._retry(lambda: self._table.delete(where))["num_deleted_rows"])

    def add_columns(self, fields: Sequence[Any]) -> None:
        """Gives every row new columns, empty at first."""
        import pyarrow as pa

        def widen() -> None:
            new = [field for field in fields if field.name not in self._table.schema.names]
            if new:
                self._table.add_columns(pa.schema(new))

        self._retry(widen)

    def widen(self, field: Any) -> None:
        """Gives a column a wider type; its values stay.

        A column of another type is filled beside the old one and then takes its name. A stop in
        between leaves one of the two, and the next call goes on.

        Raises:
            ConfigError: the values that are there do not fit the type exactly
        """
        name, old = field.name, self._table.schema.field(field.name).type
        if reaches(old, field.type) and self.newest().count(
            f"`{name}` > {EXACT} OR `{name}` < -{EXACT}"
        ):
            raise ConfigError(
                f"column '{name}' holds whole numbers beyond {EXACT} and would get fractions; give "
                "these a column of their own"
            )
        kept = shared_type(old, field.type)
        try:
            if kept != old:
                self._replace(name, kept)
            more = missing_fields(kept, field.type)
            if more is not None:
                self._retry(lambda: self._add(field.with_type(more)))
        except FourMError as error:
            raise ConfigError(f"column '{name}' cannot become {field.type}: {error}") from error

    def _replace(self, name: str, kind: Any) -> None:
        draft = DRAFT + name
        if draft in self._table.schema.names:  # of a call that was stopped
            self._retry(lambda: self._table.drop_columns([draft]))
        old = self._table.schema.field(name)
        if holds_nothing(old.type):  # `[]` and `{}` of an index that was made by an older version
            self._retry(lambda: self._add(old.with_name(draft).with_type(kind)))
        else:
            cast = f"arrow_cast(`{name}`, '{cast_name(kind)}')"
            self._retry(lambda: self._table.add_columns({draft: cast}))
        self._retry(lambda: self._table.drop_columns([name]))
        self._retry(lambda: self._table.alter_columns({"path": draft, "name": name}))

    def _add(self, field: Any) -> None:
        import pyarrow as pa

        self._table.add_columns(pa.schema([field]))

    def mend(self) -> None:
        """Finishes a `widen` that was stopped after the old column had gone."""
        newest = self.newest()
        for draft in newest.drafts:
            name = draft.removeprefix(DRAFT)
            if name in newest.schema.names:
                self._retry(lambda draft=draft: self._table.drop_columns([draft]))  # type: ignore[misc]
            else:
                rename = {"path": draft, "name": name}
                self._retry(lambda rename=rename: self._table.alter_columns(rename))  # type: ignore[misc]

    def compact(self, keep: timedelta) -> None:
        """Joins small files, refreshes search structures, drops old versions that nobody reads."""
        if not self.newest().exists:
            return
        start = time.monotonic()
        self._retry(self._joined_files)
        margin = MARGIN + timedelta(seconds=time.monotonic() - start)
        with self.dropping() as below:

            def drop() -> None:
                spared = timedelta(0) if below is None else age(self._table, below) + margin
                oldest = min(max(keep, spared, timedelta(milliseconds=1)), KEEP_ALL)
                self._table.cleanup_old_versions(older_than=oldest)

            if below != 0:
                self._retry(drop, pin=False)

    def _joined_files(self) -> None:
        self._table.optimize.compact_files()
        self._table.optimize.optimize_indices()

    def build_index(self, column: str, kind: str, **options: Any) -> None:
        """Builds one of the engine's own indexes over a column; replaces an older one."""
        self._retry(lambda: self._table.create_index(column, kind, replace=True, **options))

    def _merge(self, rows: Any, *, replace: bool) -> Any:
        def write() -> Any:
            merge = self._table.merge_insert("id").when_not_matched_insert_all()
            merge = merge.when_matched_update_all() if replace else merge
            return merge.execute(rows)

        return self._retry(write)

    def _retry(self, write: Callable[[], Result], *, pin: bool = True) -> Result:
        """Runs a write until it does not meet another one; waits longer each time."""
        for attempt in range(ATTEMPTS):
            try:
                with self.pinned() if pin else nullcontext():
                    if attempt or self._pins.path is not None:
                        reading(None, self._table.checkout_latest)
                    return write()
            except Exception as error:  # the engine's panics derive from nothing nearer
                # Files may also be dropped by another's compaction while this write reads them
                if not (is_conflict(error) or is_gone(error)):
                    raise write_error(error) from error
                log.debug("commit conflict, attempt %d: %s", attempt + 1, error)
                time.sleep(random.uniform(0.2, 1.0) * min(0.02 * 2**attempt, 2.0))
        raise FourMError(
            f"{ATTEMPTS} attempts to write met other writers; add larger batches less often"
        )


def _joined(tables: Sequence[Any]) -> Any:
    import pyarrow as pa

    return tables[0] if len(tables) == 1 else pa.concat_tables(tables)
