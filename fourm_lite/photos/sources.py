"""Where pictures come from: folders, tars, JSONL, Parquet and LanceDB, all as one stream of items.

Nothing is trusted and nothing stops the stream: what cannot be used comes as ``Skipped`` with its
reason, in its place. An item carries its own columns, so a bad neighbour cannot shift them. Links
to folders are followed, and a folder is read once.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fourm_lite.errors import ConfigError
from fourm_lite.photos.archives import read_member, tar_items
from fourm_lite.photos.content import begins_with, read_file
from fourm_lite.photos.endings import (
    LINE_ENDINGS,
    PARQUET_ENDINGS,
    is_picture,
    is_tar,
    stem_of,
    why_unread,
)
from fourm_lite.photos.item import Item, Skipped, Stream, file_item, printable, split_uri
from fourm_lite.photos.table_rows import (
    USUAL,
    Naming,
    is_lance,
    json_items,
    lance_items,
    parquet_items,
    read_row,
)

SNIFFED = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")


def open_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of every folder or file, one source after the other.

    Args:
        paths: folders, ``.tar`` shards (also compressed), ``.parquet``, ``.jsonl``, tables of
            LanceDB (``NAME.lance``), single pictures
        prefix: put before every id, so that two folders with equal names keep apart

    Raises:
        ConfigError: a path is not there or of a kind that is not read; said before the first item
    """
    paths = list(paths)
    remote = next((str(path) for path in paths if "://" in str(path)), None)
    if remote is not None:
        raise ConfigError(f"photos are read from this machine, got {remote}; copy them here first")
    # Absolute, because a row outlives the folder that it was indexed from.
    places = [Path(path).expanduser().absolute() for path in paths]
    return _chain([(place, reader_of(place)) for place in places], prefix)


def folder_items(root: Path, *, tars: bool = True) -> Stream:
    """Every picture below a folder in the order of names; links are followed, loops are not.

    Photos of a kind that is not read are listed, other files are left out without a word.

    Args:
        root: the folder
        tars: whether tar shards inside the folder are opened too, or listed
    """
    yield from _Walk(root, tars, {_identity(root)}).items(root, ())


def reader_of(path: Path, naming: Naming = USUAL) -> Callable[[Path], Stream]:
    """What reads this path.

    Raises:
        ConfigError: it is not there, or of a kind that is not read
    """
    name = path.name.lower()
    if path.is_dir():
        return (lambda place: lance_items(place, naming)) if is_lance(path) else folder_items
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    if not path.is_file():
        raise ConfigError(f"{path} is neither a file nor a folder but a pipe or a device")
    if is_tar(name):
        return tar_items
    if name.endswith(PARQUET_ENDINGS):
        return lambda file: parquet_items(file, naming)
    if name.endswith(LINE_ENDINGS):
        return lambda file: json_items(file, naming)
    if is_picture(name):
        return lambda file: iter([file_item(file, file.name)])
    raise ConfigError(
        f"{path.name} is no source; give a folder, .tar, .parquet, .jsonl or a picture"
    )


def read_uri(uri: str) -> bytes:
    """The bytes of an item that was indexed, by the ``uri`` in its row.

    Raises:
        ConfigError: it is not there any more
    """
    path, member = split_uri(uri)
    try:
        if not member:
            return read_file(path)
        return read_member(path, member) if is_tar(path.name) else read_row(path, int(member))
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"{uri} cannot be read any more: {error}") from error


def _chain(chosen: list[tuple[Path, Callable[[Path], Stream]]], prefix: str) -> Stream:
    for path, reader in chosen:
        for item in reader(path):
            if isinstance(item, Item) and prefix:
                item = dataclasses.replace(item, id=prefix + item.id)
            yield item


@dataclass
class _Walk:
    """One walk over a folder; `seen` are the folders that were entered."""

    root: Path
    tars: bool
    seen: set[tuple[int, int]]

    def items(self, folder: Path, above: tuple[tuple[int, int], ...]) -> Stream:
        """The pictures below a folder, which lies below the folders `above`."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            above = (*above, _identity(folder))
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
                yield from self._file(path)
            elif identity in above:
                continue
            elif identity in self.seen:
                yield Skipped(printable(str(path)), "a link to a folder that was read before")
            elif path.is_symlink() and path.resolve().is_relative_to(self.root.resolve()):
                reason = "a link to a folder that is read in its own place"
                yield Skipped(printable(str(path)), reason)
            else:
                self.seen.add(identity)
                yield from self.items(path, above)

    def _file(self, path: Path) -> Stream:
        place, wanted = printable(str(path)), is_picture(path.name)
        if path.is_symlink() and not os.path.exists(path):
            if wanted or not path.suffix:
                yield Skipped(place, "broken link")
        elif not path.is_file():
            yield Skipped(place, "not a regular file; it is not opened")
        elif wanted or (not path.suffix and begins_with(path, SNIFFED)):
            yield file_item(path, path.relative_to(self.root).as_posix())
        elif is_tar(path.name):
            yield from self._tar(path)
        elif reason := why_unread(path.name):
            yield Skipped(place, reason)

    def _tar(self, path: Path) -> Stream:
        if not self.tars:
            reason = "a tar inside of a folder is not opened here; give it by itself"
            yield Skipped(printable(str(path)), reason)
            return
        folder = path.relative_to(self.root).parent.as_posix()
        for item in tar_items(path):
            if isinstance(item, Item) and folder != ".":
                item = dataclasses.replace(
                    item, id=f"{folder}/{item.id}", key=f"{folder}/{stem_of(path.name)}/{item.key}"
                )
            yield item


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
