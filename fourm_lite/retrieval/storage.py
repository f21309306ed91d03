"""The rows of an index as one Lance table: read, write, retry; the only file that knows LanceDB.

Every write is one new version of the table. A writer that dies leaves the last version as it was,
and two writers that meet are put one after the other. ``id`` is the table's primary key, so Lance
itself refuses a row that two processes add at the same time.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np

from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.retrieval.exact import RowIds

log = logging.getLogger(__name__)

TABLE = "items"
KEY = b"lance-schema:unenforced-primary-key:position"
"""Field metadata by which Lance knows the key; set at creation, so that no writer misses it."""
ATTEMPTS = 30
BATCH_ROWS = 8192

Result = TypeVar("Result")


class Rows:
    """One Lance table at an address; it may not exist yet.

    A handle stays at its version until ``refresh``, so one search reads one state.
    """

    def __init__(self, path: str, options: Mapping[str, str] | None = None) -> None:
        import lancedb

        self._db = lancedb.connect(path, storage_options=dict(options) if options else None)
        self._table: Any = None
        self._version = 0
        self._known: dict[str, Any] = {}  # what was asked of this version already

    @property
    def exists(self) -> bool:
        """Whether the table is there; looks once more if it was not."""
        if self._table is None:
            try:
                self._table = self._db.open_table(TABLE)
            except (ValueError, FileNotFoundError) as error:
                if "not found" not in str(error).lower():
                    raise
        return self._table is not None

    @property
    def schema(self) -> Any:
        """The Arrow schema of the rows."""
        if "schema" not in self._known:
            self._known["schema"] = self._table.schema
        return self._known["schema"]

    def create(self, schema: Any) -> None:
        """Makes the table with ``id`` as its key, unless another process was faster."""
        import pyarrow as pa

        place = schema.get_field_index("id")
        field = schema.field(place)
        keyed = field.with_metadata({**(field.metadata or {}), KEY: b"1"})
        try:
            self._known = {}
            self._table = self._db.create_table(TABLE, schema=pa.schema(schema.set(place, keyed)))
        except (ValueError, RuntimeError, OSError) as error:
            if "exist" not in str(error).lower() or not self.exists:
                raise _write_error(error) from error

    @property
    def version(self) -> int:
        """The version that this handle reads."""
        return self._version or self.refresh()

    def refresh(self) -> int:
        """Moves to the newest version and returns its number; 0 where there is no table."""
        if self.exists:
            self._table.checkout_latest()
            version = int(self._table.version)
            if version != self._version:
                self._version, self._known = version, {}
        return self._version

    def count(self, where: str | None = None) -> int:
        """How many rows there are, or how many pass the filter."""
        if not self.exists:
            return 0
        if where is not None:
            return filtered(where, lambda: int(self._table.count_rows(where)))
        if "rows" not in self._known:
            self._known["rows"] = int(self._table.count_rows())
        return int(self._known["rows"])

    def scan(
        self, columns: Sequence[str], where: str | None = None, *, batch_rows: int = BATCH_ROWS
    ) -> Iterator[tuple[RowIds, Any]]:
        """Runs over the rows in batches: their row ids and an Arrow record batch."""
        if not self.exists:
            return
        query = self._table.search().select(list(columns)).with_row_id(True)
        if where is not None:
            query = query.where(where)
        reader = filtered(where, lambda: query.to_batches(batch_rows))
        while True:
            batch = filtered(where, lambda: next(reader, None))
            if batch is None:
                return
            row_ids = batch.column(batch.schema.names.index("_rowid")).to_numpy()
            yield row_ids, batch.select(list(columns))

    def take(self, row_ids: RowIds, columns: Sequence[str]) -> Any:
        """The rows with these row ids as an Arrow table, in the order of the ids."""
        query = self._table.take_row_ids([int(i) for i in row_ids]).select(list(columns))
        table = query.with_row_id().to_arrow()
        found = table.column("_rowid").to_numpy()
        order = np.argsort(found)
        place = order[np.searchsorted(found, row_ids, sorter=order)]
        return table.select(list(columns)).take(place)

    def insert(self, rows: Any) -> int:
        """Adds the rows whose id is new; returns how many these were."""
        return int(self._merge(rows, replace=False).num_inserted_rows)

    def upsert(self, rows: Any) -> tuple[int, int]:
        """Adds new rows, replaces those of a known id; returns (inserted, replaced)."""
        result = self._merge(rows, replace=True)
        return int(result.num_inserted_rows), int(result.num_updated_rows)

    def delete(self, where: str) -> int:
        """Deletes the rows that pass the filter; returns how many these were."""
        if not self.exists:
            return 0
        return int(self._retry(lambda: self._table.delete(where)).num_deleted_rows)

    def add_columns(self, fields: Sequence[Any]) -> None:
        """Gives every row new columns, empty at first."""
        import pyarrow as pa

        def widen() -> None:
            new = [field for field in fields if field.name not in self._table.schema.names]
            if new:
                self._table.add_columns(pa.schema(new))

        self._retry(widen)

    def compact(self, keep: timedelta) -> None:
        """Joins small files, refreshes search structures, drops versions older than ``keep``."""
        if self.exists:
            keep = max(keep, timedelta(milliseconds=1))
            self._retry(lambda: self._table.optimize(cleanup_older_than=keep))

    @property
    def handle(self) -> Any:
        """LanceDB's own table, for ``ann.py``."""
        return self._table

    def _merge(self, rows: Any, *, replace: bool) -> Any:
        def write() -> Any:
            merge = self._table.merge_insert("id").when_not_matched_insert_all()
            merge = merge.when_matched_update_all() if replace else merge
            return merge.execute(rows)

        return self._retry(write)

    def _retry(self, write: Callable[[], Result]) -> Result:
        """Runs a write until it does not meet another one; waits longer each time."""
        self._version, self._known = 0, {}
        for attempt in range(ATTEMPTS):
            try:
                return write()
            except (RuntimeError, OSError, ValueError) as error:
                if not _is_conflict(error):
                    raise _write_error(error) from error
                log.debug("commit conflict, attempt %d: %s", attempt + 1, error)
                time.sleep(random.uniform(0.2, 1.0) * min(0.02 * 2**attempt, 2.0))
                self._table.checkout_latest()
        raise FourMError(
            f"{ATTEMPTS} attempts to write met other writers; add larger batches less often"
        )


def in_filter(column: str, values: Sequence[str | int]) -> str:
    """A SQL condition: the column is one of these values; text is quoted.

    >>> in_filter("id", ["a", "it's"])
    "`id` IN ('a', 'it''s')"
    """
    quoted = [
        "'" + v.replace("'", "''") + "'" if isinstance(v, str) else str(int(v)) for v in values
    ]
    return f"`{column}` IN ({', '.join(quoted)})"


def filtered(where: str | None, read: Callable[[], Result]) -> Result:
    """Reads; a filter that Lance refuses becomes a message for its author."""
    try:
        return read()
    except BaseException as error:
        # A panic of the engine is no Exception to Python
        panic = type(error).__name__ == "PanicException"
        if where is None or not (panic or isinstance(error, ValueError | RuntimeError)):
            raise
        raise ConfigError(f"the filter {where[:200]!r} does not work: {_reason(error)}") from error


def _is_conflict(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("conflict", "concurrent", "preempted", "already exists"))


def _write_error(error: Exception) -> Exception:
    if isinstance(error, FourMError):
        return error
    return FourMError(
        f"the rows could not be written ({_reason(error)}); "
        "the last version of the index is unchanged and readable"
    )


def _reason(error: BaseException) -> str:
    """What Lance says, less the place in its own source."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return re.split(r",? ?/\S+\.rs:|, rust/", text)[0].removeprefix("Invalid input, ")[:300]
