"""Where pictures come from: folders, tar shards, Parquet and JSONL, all as one stream of items.

Nothing is trusted and nothing stops the stream: what cannot be used comes as ``Skipped`` with its
reason, in its place. An item carries its own columns, so a bad neighbour cannot shift them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from fourm_lite.errors import ConfigError
from fourm_lite.modalities.pictures import SUFFIXES
from fourm_lite.retrieval import shards
from fourm_lite.retrieval.items import Item, Skipped, Stream, file_item, printable

SNIFFED = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


def open_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of every folder or file, one source after the other.

    Args:
        paths: folders, ``.tar`` shards (also compressed), ``.parquet``, ``.jsonl``, single pictures
        prefix: put before every id, so that two folders with equal names keep apart

    Raises:
        ConfigError: a path is not there or of a kind that is not read; said before the first item
    """
    # Absolute, because a row outlives the folder that it was indexed from.
    places = [Path(path).expanduser().absolute() for path in paths]
    return _chain([(place, _reader(place)) for place in places], prefix)


def folder_items(root: Path) -> Stream:
    """Every picture below a folder in the order of names; links are followed, loops are not.

    Tar shards inside the folder are opened too. Other files are left out without a word.
    """
    yield from _walk(root, root, {_identity(root)})


def read_uri(uri: str) -> bytes:
    """The bytes of an item that was indexed, by the ``uri`` in its row.

    Raises:
        ConfigError: it is not there any more
    """
    path, mark, member = uri.partition("::")
    try:
        return shards.read_member(Path(path), member) if mark else Path(path).read_bytes()
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"{uri} cannot be read any more: {error}") from error


def _reader(path: Path) -> Callable[[Path], Stream]:
    if path.is_dir():
        return folder_items
    if not path.is_file():
        raise ConfigError(f"there is no file or folder {path}")
    name = path.name.lower()
    if shards.is_tar(name):
        return shards.tar_items
    if name.endswith((".parquet", ".pq")):
        return shards.parquet_items
    if name.endswith((".jsonl", ".ndjson")):
        return shards.jsonl_items
    if path.suffix.lower() in SUFFIXES:
        return lambda file: iter([file_item(file, file.name)])
    raise ConfigError(
        f"{path.name} is no source; give a folder, .tar, .parquet, .jsonl or a picture"
    )


def _chain(chosen: list[tuple[Path, Callable[[Path], Stream]]], prefix: str) -> Stream:
    for path, reader in chosen:
        for item in reader(path):
            if isinstance(item, Item) and prefix:
                item = Item(prefix + item.id, item.uri, item.read, item.columns)
            yield item


def _walk(root: Path, folder: Path, seen: set[tuple[int, int]]) -> Stream:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(printable(str(folder)), f"cannot be listed: {error.strerror}")
        return
    for entry in entries:
        path = Path(entry.path)
        try:
            identity = _identity(path) if path.is_dir() else None
        except OSError as error:
            yield Skipped(printable(str(path)), f"cannot be looked at: {error.strerror}")
            continue
        if identity is None:
            yield from _file(root, path)
        elif identity not in seen:
            seen.add(identity)
            yield from _walk(root, path, seen)


def _file(root: Path, path: Path) -> Stream:
    wanted = path.suffix.lower() in SUFFIXES
    if path.is_symlink() and not os.path.exists(path):
        if wanted or not path.suffix:
            yield Skipped(printable(str(path)), "broken link")
    elif not path.is_file():
        if wanted:
            yield Skipped(printable(str(path)), "not a regular file")
    elif wanted or (not path.suffix and _looks_like_picture(path)):
        yield file_item(path, path.relative_to(root).as_posix())
    elif shards.is_tar(path.name.lower()):
        folder = path.relative_to(root).parent.as_posix()
        for item in shards.tar_items(path):
            if isinstance(item, Item) and folder != ".":
                item = Item(f"{folder}/{item.id}", item.uri, item.read, item.columns)
            yield item


def _looks_like_picture(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(SNIFFED)
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
