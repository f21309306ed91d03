"""Pictures in containers: webdataset tars, Parquet, and JSONL that names files.

Tars are read as a stream and never unpacked: a member's name is only a name, so ``../`` in it can
neither read nor write outside, and links and devices are listed instead of followed.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fourm_lite.modalities.pictures import SUFFIXES
from fourm_lite.names import is_inside
from fourm_lite.retrieval.items import (
    Item,
    Skipped,
    Stream,
    clean_columns,
    file_item,
    printable,
)

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST_MEMBER = 1 << 28
LARGEST_SIDECAR = 1 << 20
PARQUET_ROWS = 64
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp", "bytes", "picture", "photo")
FILE_COLUMNS = ("file", "path", "image", "image_path", "filename", "file_name")
ID_COLUMNS = ("id", "key", "__key__")


def is_tar(name: str) -> bool:
    """Whether a lower-case file name is that of a tar."""
    return name.endswith(TAR_ENDINGS)


def tar_items(path: Path) -> Stream:
    """The pictures of a webdataset shard.

    Members that follow each other and share a name up to the first dot are one sample: its
    ``.txt`` becomes the column ``caption``, its ``.cls`` ``label``, its ``.json`` any columns.
    """
    shard = path.name.split(".")[0]
    sample: dict[str, tuple[str, bytes]] = {}
    current: str | None = None
    for member in _members(path):
        if isinstance(member, Skipped):
            yield member
            continue
        name, data = member
        key, _, ending = _split(name)
        if key != current:
            yield from _sample(path, shard, current or "", sample)
            current, sample = key, {}
        sample[ending.lower()] = (name, data)
    yield from _sample(path, shard, current or "", sample)


def parquet_items(path: Path) -> Stream:
    """The pictures of a Parquet file: a column of bytes, of {bytes, path}, or of file names."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            image, named = _image_column(schema)
            if image is None and named is None:
                reason = f"has no column of pictures among {', '.join(schema.names)}"
                yield Skipped(printable(str(path)), reason)
                return
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    yield _parquet_item(path, number, row, image, named)
                    number += 1
    except (OSError, pa.ArrowException) as error:
        yield Skipped(printable(str(path)), f"cannot be read: {str(error).splitlines()[0]}")


def jsonl_items(path: Path) -> Stream:
    """The pictures that a JSONL file names: ``file`` relative to it, ``id``, and any columns."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _json_item(path, number, line)
    except OSError as error:
        yield Skipped(printable(str(path)), f"cannot be read: {error.strerror}")


def read_member(path: Path, member: str) -> bytes:
    """The bytes of one member of a tar, or of one row of a Parquet file.

    Raises:
        KeyError: there is no such member
    """
    if not is_tar(path.name.lower()):
        return _read_parquet_row(path, int(member))
    for found in _members(path):
        if not isinstance(found, Skipped) and printable(found[0]) == member:
            return found[1]
    raise KeyError(member)


# Tar -----------------------------------------------------------------------------------------


def _members(path: Path) -> Iterator[tuple[str, bytes] | Skipped]:
    try:
        with tarfile.open(path, mode="r|*") as shard:
            for member in shard:
                reason = _refusal(member)
                if reason:
                    yield Skipped(f"{printable(str(path))}::{printable(member.name)}", reason)
                    continue
                if not member.isfile():
                    continue
                stream = shard.extractfile(member)
                data = b"" if stream is None else stream.read()
                yield member.name.removeprefix("./"), data
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield Skipped(printable(str(path)), f"the tar cannot be read to its end: {error}")


def _refusal(member: tarfile.TarInfo) -> str | None:
    """Why a member is not taken; a folder is neither taken nor refused."""
    if not is_inside(member.name.removeprefix("./") or "."):
        return "its name points outside of the tar"
    if member.issym() or member.islnk():
        return f"a link, to {printable(member.linkname)!r}; links are not followed"
    if not member.isfile() and not member.isdir():
        return "a device or another special file"
    if member.size > LARGEST_MEMBER:
        return f"{member.size} bytes are more than {LARGEST_MEMBER}"
    return None


def _split(name: str) -> tuple[str, str, str]:
    folder, slash, last = name.rpartition("/")
    key, dot, ending = last.partition(".")
    return folder + slash + key, dot, "." + ending


def _sample(path: Path, shard: str, key: str, sample: Mapping[str, tuple[str, bytes]]) -> Stream:
    columns: dict[str, Any] = {}
    pictures = []
    for ending, (name, data) in sample.items():
        uri = f"{printable(str(path))}::{printable(name)}"
        if "." + ending.rpartition(".")[2] in SUFFIXES:
            pictures.append((ending, uri, data))
        elif ending in (".txt", ".json", ".cls"):
            try:
                columns.update(_sidecar(ending, data))
            except ValueError as error:
                yield Skipped(uri, f"left out of the columns: {error}")
    for ending, uri, data in pictures:
        name = key if len(pictures) == 1 else key + ending
        yield Item(printable(f"{shard}/{name}"), uri, _holding(data), clean_columns(columns))


def _sidecar(ending: str, data: bytes) -> dict[str, Any]:
    if len(data) > LARGEST_SIDECAR:
        raise ValueError(f"{len(data)} bytes are more than {LARGEST_SIDECAR}")
    if ending == ".json":
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError("not a JSON object")
        return fields
    text = data.decode("utf-8").strip()
    return {"caption": text} if ending == ".txt" else {"label": int(text)}


class _Held:
    """Bytes that were read already, behind the interface of a reader."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self) -> bytes:
        return self._data


def _holding(data: bytes) -> _Held:
    return _Held(data)


# Parquet -------------------------------------------------------------------------------------


def _image_column(schema: Any) -> tuple[str | None, str | None]:
    """The column with bytes and, where there is none, the column with file names."""
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    for name in (*IMAGE_COLUMNS, *schema.names):
        if name in schema.names and holds_bytes(schema.field(name).type):
            return name, None
    texts = (pa.string(), pa.large_string())
    for name in FILE_COLUMNS:
        if name in schema.names and schema.field(name).type in texts:
            return None, name
    return None, None


def _parquet_item(
    path: Path, number: int, row: dict[str, Any], image: str | None, named: str | None
) -> Item | Skipped:
    uri = f"{printable(str(path))}::{number}"
    name = _own_id(row, f"{path.stem}/{number}")
    if image is None:
        return _named_file(path, str(row.pop(named or "") or ""), name, row, uri)
    value = row.pop(image)
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        return Skipped(uri, "no bytes in this row")
    return Item(name, uri, _holding(data), clean_columns(row))


def _read_parquet_row(path: Path, number: int) -> bytes:
    for place, item in enumerate(parquet_items(path)):
        if place == number and isinstance(item, Item):
            return item.read()
    raise KeyError(number)


# JSONL ---------------------------------------------------------------------------------------


def _json_item(path: Path, number: int, line: bytes) -> Item | Skipped:
    uri = f"{printable(str(path))}:{number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        return Skipped(uri, f"not JSON: {error}")
    if not isinstance(row, dict):
        return Skipped(uri, "not a JSON object")
    key = next((k for k in FILE_COLUMNS if isinstance(row.get(k), str)), None)
    if key is None:
        return Skipped(uri, f"names no file; one of {', '.join(FILE_COLUMNS)} should")
    file = row.pop(key)
    return _named_file(path, file, _own_id(row, file), row, uri)


def _own_id(row: dict[str, Any], otherwise: str) -> str:
    for key in ID_COLUMNS:
        value = row.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            row.pop(key)
            return printable(str(value))
    return printable(otherwise)


def _named_file(
    path: Path, file: str, name: str, row: Mapping[str, Any], uri: str
) -> Item | Skipped:
    if not is_inside(file):
        return Skipped(uri, f"{printable(file)!r} lies outside of the folder of {path.name}")
    item = file_item(path.parent / file, name)
    return Item(name, item.uri, item.read, clean_columns(row))
