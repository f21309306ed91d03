"""Rows in files of a table that no version names yet; one commit makes any number of them visible.

A process that is killed before the commit leaves such files behind; `sweep` removes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fourm_lite.reading.remote import place
from fourm_lite.search.index.lance_calls import lance, reading, write_error
from fourm_lite.search.index.rows import align
from fourm_lite.search.index.storage import KEEP_ALL, Rows


def stage(rows: Rows, table: Any) -> list[str]:
    """Writes rows, in the form of the stored table; gives their files, as JSON.

    Raises:
        FourMError: they cannot be written
    """
    if not len(table):
        return []
    try:
        written = lance().fragment.write_fragments(
            table, rows.place, schema=table.schema, mode="append", storage_options=rows.options
        )
    except Exception as error:
        raise write_error(error) from error
    return [json.dumps(one.to_json()) for one in written]


def is_whole(rows: Rows, staged: str) -> bool:
    """Whether staged files are there."""
    return all(place(file).exists() for file in _files(rows, staged))


def field_ids(rows: Rows) -> frozenset[int]:
    """The numbers by which the table knows its columns now."""
    newest = rows.newest()
    return frozenset(_fields(newest.handle.lance_schema.fields()) if newest.exists else ())


def fits(known: frozenset[int], staged: str) -> bool:
    """Whether the columns that staged rows were written for are among these."""
    return all(known.issuperset(file["fields"]) for file in json.loads(staged)["files"])


def read(rows: Rows, staged: str) -> Any:
    """Staged rows, in the form that the table has now."""
    import pyarrow as pa
    from lance.file import LanceFileReader

    tables = [
        LanceFileReader(file, storage_options=rows.options).read_all().to_table()
        for file in _files(rows, staged)
    ]
    return align(pa.concat_tables(tables), rows.newest().schema)


def commit(rows: Rows, staged: Sequence[str]) -> int:
    """Makes staged rows visible together, in their order; returns how many.

    Raises:
        FourMError: they cannot be written; nothing was added
    """
    if not staged:
        return 0
    made = [lance().fragment.FragmentMetadata.from_json(one) for one in staged]
    try:
        with rows.pinned():
            lance().LanceDataset.commit(
                rows.place, lance().LanceOperation.Append(made),
                read_version=rows.newest().version, storage_options=rows.options,
            )  # fmt: skip
    except Exception as error:
        raise write_error(error) from error
    return sum(one.physical_rows for one in made)


def sweep(rows: Rows) -> None:
    """Removes files that no version names; waits for another time while others are at work."""
    if not rows.newest().exists:
        return
    with rows.dropping() as below:
        if below is None:
            table = rows.newest().handle
            reading(None, lambda: table.cleanup_old_versions(KEEP_ALL, delete_unverified=True))


def _files(rows: Rows, staged: str) -> list[str]:
    return [f"{rows.place}/data/{file['path']}" for file in json.loads(staged)["files"]]


def _fields(fields: Any) -> Iterator[int]:
    for field in fields:
        yield field.id()
        yield from _fields(field.children())
