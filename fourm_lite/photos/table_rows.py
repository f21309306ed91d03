"""Pictures that a table or list names or holds: JSONL, Parquet, and tables of LanceDB.

A row gives its picture as bytes, as ``{bytes, path}``, or as the name of a file beside the list.
A cell of Parquet can be stored once for many rows, so a small file may become large in memory: as
many rows are read at once as fit the budget, were each as large as the largest that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourm_lite.errors import ReadError, suggest
from fourm_lite.names import is_inside
from fourm_lite.photos.columns import is_missing, without_nan
from fourm_lite.photos.item import (
    FileContent,
    HeldContent,
    Item,
    Skipped,
    Stream,
    clean_columns,
    joined,
    printable,
)
from fourm_lite.photos.lists import json_rows
from fourm_lite.reading.regular import PHOTO_BYTES, allowance, budget, open_regular, too_large
from fourm_lite.reading.remote import is_remote

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


TABLE_ROWS = 64
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "bytes", "picture", "photo")
FILE_COLUMNS = ("file", "path", "image", "image_path", "filename", "file_name")
ID_COLUMNS = ("id", "key", "__key__")


@dataclass(frozen=True)
class Naming:
    """Which keys of a row name its photo, and which files it may name.

    Units:
        id, image: a key, or "" for the usual ones
        anywhere: whether a list may name files outside of its own folder
    """

    id: str = ""
    image: str = ""
    anywhere: bool = False


USUAL = Naming()


def json_items(path: Path, naming: Naming = USUAL) -> Stream:
    """The pictures that a JSONL file names: ``file`` relative to it, ``id``, and any columns.

    Lines that follow each other and say one photo with a caption each are one item.
    """
    return _merged(_json_items(path, naming))


def _json_items(path: Path, naming: Naming) -> Stream:
    for row in json_rows(path):
        if isinstance(row, Skipped):
            yield row
            continue
        number, fields = row
        place = f"{printable(str(path))}:{number}"
        yield _Row(path, place, number, fields, naming).item()


def parquet_items(path: Path, naming: Naming = USUAL) -> Stream:
    """The pictures of a Parquet file: a column of bytes, of {bytes, path}, or of file names."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_regular(path) as source, parquet.ParquetFile(source) as file:
            rows = check_table(file.metadata, allowance(source), str(path))
            batches = file.iter_batches(batch_size=min(TABLE_ROWS, rows))
            yield from _merged(_table_items(path, file.schema_arrow, batches, naming))
    except MemoryError as error:
        if not is_absurd(error):
            raise
        yield _unread(path, error)
    except (OSError, pa.ArrowException, ValueError, KeyError, RuntimeError) as error:
        yield _unread(path, error)


def lance_items(path: Path, naming: Naming = USUAL) -> Stream:
    """The pictures of a table of Lance, as LanceDB makes them too, in the order of its rows."""
    try:
        table = opened_lance(path)
        check_columns(table.schema.names, str(path))
        batches = table.scanner(batch_size=TABLE_ROWS).to_reader()
        yield from _merged(_table_items(path, table.schema, batches, naming))
    except MemoryError:
        raise
    except Exception as error:  # Lance's own have no common base
        yield _unread(path, error)


def opened_lance(path: Path) -> Any:
    """The table in a folder ``NAME.lance``, whatever characters its name has."""
    import lance

    return lance.dataset(path.absolute())


def is_lance(path: Path) -> bool:
    """Whether a folder is a table of LanceDB rather than a folder of photos of that name."""
    return path.suffix.lower() == ".lance" and (path / "_versions").is_dir()


def read_row(path: Path, number: int) -> bytes:
    """The bytes of the picture in one row of a Parquet file or LanceDB table.

    Raises:
        KeyError: there is no such row, or no picture in it
    """
    read = lance_items if path.is_dir() else parquet_items
    ending = f"::{number}"
    for item in read(path):
        if isinstance(item, Item) and item.uri.endswith(ending):
            return item.read()
    raise KeyError(number)


def _table_items(path: Path, schema: Any, batches: Any, naming: Naming) -> Stream:
    held, named = (naming.image, "") if naming.image else _image_column(schema)
    place = printable(str(path))
    if not held and not named:
        columns = ", ".join(schema.names)
        yield Skipped(place, f"has no column of pictures among {columns}")
        return
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            given = Naming(naming.id, held or named, naming.anywhere)
            yield _Row(path, f"{place}::{number}", number, without_nan(row), given).item()
            number += 1


def _image_column(schema: Any) -> tuple[str, str]:
    """The column with bytes and, where there is none, the column with file names."""
    import pyarrow as pa

    def is_one_of(kind: Any, *names: str) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return any(getattr(pa.types, f"is_{name}")(kind) for name in names)

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return is_one_of(kind, "binary", "large_binary", "binary_view", "fixed_size_binary")

    for name in (*IMAGE_COLUMNS, *schema.names):
        if name in schema.names and holds_bytes(schema.field(name).type):
            return name, ""
    for name in FILE_COLUMNS:
        if name in schema.names and is_one_of(
            schema.field(name).type, "string", "large_string", "string_view"
        ):
            return "", name
    return "", ""


def _merged(stream: Stream) -> Stream:
    """Neighbouring rows of one photo as one item."""
    last: Item | None = None
    for one in stream:
        both = joined(last, one) if last is not None and isinstance(one, Item) else None
        if both is not None:
            last = both
            continue
        if last is not None:
            yield last
        last = one if isinstance(one, Item) else None
        if isinstance(one, Skipped):
            yield one
    if last is not None:
        yield last


@dataclass(frozen=True)
class _Row:
    """One row of a list or table; `place` is where it stands."""

    path: Path
    place: str
    number: int
    fields: Mapping[str, Any]
    naming: Naming

    def item(self) -> Item | Skipped:
        """Its picture, or why there is none."""
        try:
            return self._item()
        except ValueError as error:
            return Skipped(self.place, str(error))

    def _item(self) -> Item:
        key = self._image_key()
        image = self.fields[key]
        read, uri, otherwise = self._content(image)
        id_key = self._id_key()
        name = otherwise if not id_key else printable(str(self.fields[id_key]))
        if "\0" in name:
            raise ValueError(f"has a character 0 in its id {name!r}")
        rest = {k: v for k, v in self.fields.items() if k not in (key, id_key)}
        return Item(name, uri, read, clean_columns(rest), key=name, fields=rest)

    def _content(self, image: Any) -> tuple[Any, str, str]:
        """How the picture is read, where it lies, and the row's id where it names none."""
        numbered = f"{self.path.stem}/{self.number}"
        path = image.get("path") if isinstance(image, Mapping) else image
        data = image.get("bytes") if isinstance(image, Mapping) else image
        if isinstance(data, bytes):
            if len(data) > PHOTO_BYTES:
                raise ValueError(f"holds a picture of {len(data)} bytes, more than {PHOTO_BYTES}")
            return HeldContent(data), self.place, numbered
        if isinstance(image, Mapping) and not (
            isinstance(path, str) and self._file(path).is_file()
        ):
            named = f", and there is no file {printable(path)!r}" if path else ""
            raise ValueError(f"has no bytes{named}")
        if not isinstance(path, str) or not path:
            raise ValueError("has no picture")
        file = self._file(path)
        from_table = "::" in self.place.removeprefix(printable(str(self.path)))
        return FileContent(file), printable(str(file)), numbered if from_table else path

    def _file(self, name: str) -> Path:
        if "\0" in name:
            raise ValueError(f"has a character 0 in the name of its file, {name!r}")
        if not name:
            raise ValueError("names no file")
        if is_remote(name):
            raise ValueError(f"names {printable(name)!r}; no address is fetched that a list names")
        if not self.naming.anywhere and not is_inside(name):
            where = f"outside of the folder of {self.path.name}"
            raise ValueError(f"names {printable(name)!r}, which lies {where}")
        return self.path.parent / name

    def _image_key(self) -> str:
        wanted = self.naming.image
        if wanted in self.fields:
            return wanted
        if wanted:
            raise ValueError(_no_key(wanted, self.fields))
        usual = (k for k in FILE_COLUMNS if isinstance(self.fields.get(k), str | Mapping))
        key = next(usual, "")
        if not key:
            raise ValueError(f"names no file; one of {', '.join(FILE_COLUMNS)} should")
        return key

    def _id_key(self) -> str:
        wanted = self.naming.id
        if wanted and is_missing(self.fields.get(wanted)):
            raise ValueError(_no_key(wanted, self.fields))
        for key in (wanted,) if wanted else ID_COLUMNS:
            value = self.fields.get(key)
            if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
                return key
        return ""


def _no_key(key: str, row: Mapping[str, Any]) -> str:
    return f"has no key {key!r}, it has {sorted(row)}.{suggest(key, row)}"


def _unread(path: Path, error: Exception) -> Skipped:
    """A table whose rows are not known: they may hold photos, or name any below its folder."""
    reason = f"cannot be read: {_first_line(error)}"
    return Skipped(printable(str(path)), reason, printable(str(path.parent)))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
