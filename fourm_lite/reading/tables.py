"""Tables of others: what a Parquet file says of its sizes is compared with what it takes.

A cell can be stored once for many rows, so a small file may become large in memory: rows are read
by as many at once as fit the budget, were each as large as the largest that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fourm_lite.errors import ReadError
from fourm_lite.reading.budget import budget
from fourm_lite.reading.regular import too_large

ABSURD = 1 << 40
"""Bytes that no machine is asked for in earnest."""


def check_table(metadata: Any, limit: int, what: str) -> int:
    """How many rows of a Parquet file may be read at once, at least 1.

    Args:
        metadata: of pyarrow's ParquetFile
        limit: bytes that may be read at once
        what: the file, for errors

    Raises:
        ReadError: it has more rows or columns than are read, or a part of it is too large
    """
    rows, most = metadata.num_rows, max(budget().rows, limit)
    if rows > most:
        raise ReadError(
            f"{what} says that it has {rows} rows, at most {most} are read of a file of this size"
        )
    check_columns(range(metadata.num_columns), what)
    largest = 1
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        sizes = [group.column(i).total_uncompressed_size for i in range(group.num_columns)]
        total = sum(size for size in sizes if size > 0)
        if total > limit or any(size < 0 for size in sizes):
            raise ReadError(too_large(f"part {number} of {what}", total, limit))
        largest = max(largest, total)
    return max(1, limit // largest)


def check_columns(names: Sequence[Any] | range, what: str) -> None:
    """Refuses a table of more columns than a row may have.

    Raises:
        ReadError: it has more
    """
    most = budget().columns
    if len(names) > most:
        raise ReadError(f"{what} has {len(names)} columns, at most {most} are read")


def is_absurd(error: MemoryError) -> bool:
    """Whether memory is short because a damaged file asked for more than there ever is."""
    sizes = [int(digits) for digits in re.findall(r"\d{4,20}", str(error))]
    return any(size > ABSURD for size in sizes)
