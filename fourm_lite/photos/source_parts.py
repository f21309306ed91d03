"""Sources cut into parts that several readers take one by one: a shard, or some files of a folder.

The items of all parts, one part after the other, are those of `open_sources`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from fourm_lite.photos.item import (
    FileContent,
    HeldContent,
    Item,
    Skipped,
    Stream,
    is_picture,
    is_tar,
    suffix_of,
    why_unread,
)
from fourm_lite.photos.sources import (
    folder_items,
    prefixed,
    reader_of,
    tar_below,
    walk_folder,
)
from fourm_lite.reading.remote import expand, is_remote

FILES = 256
"""Files of a folder in one part."""


@dataclass(frozen=True)
class Part:
    """What one reader takes.

    Units:
        found: items and what was left out; or a shard with many photos, and the folder that it was
            found in, if it was
    """

    found: tuple[Item | Skipped, ...] = ()
    shard: Path | None = None
    root: Path | None = None
    prefix: str = ""

    def items(self) -> Stream:
        """Its photos; a shard is read now."""
        if self.shard is None:
            yield from self.found
        elif self.root is None:
            yield from prefixed(reader_of(self.shard)(self.shard), self.prefix)
        else:
            yield from prefixed(tar_below(self.shard, self.root), self.prefix)

    def stamp(self) -> str:
        """A hash that changes with what there is to read: places, sizes and times of files."""
        reads = [one.read for one in self.found if isinstance(one, Item)]
        if not all(isinstance(read, FileContent | HeldContent) for read in reads):
            return uuid4().hex  # nobody knows
        held = [read.data.hex() for read in reads if isinstance(read, HeldContent)]
        files = [read.path for read in reads if isinstance(read, FileContent)]
        stamps = [_file_stamp(file) for file in ([self.shard] if self.shard else files)]
        told = [str(self.root), self.prefix, [one.uri for one in self.found], held, stamps]
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogateescape")).hexdigest()


def other_files(paths: Iterable[str | Path]) -> list[str]:
    """The files below local folders that nothing here reads, by their names in the folder.

    Hidden files are not among them, nor files without an ending, which may be photos.
    """
    found: list[str] = []
    for root in (Path(path) for path in paths if not is_remote(path)):
        for place, folders, names in os.walk(root):
            folders[:] = [n for n in folders if not n.startswith(".") and not n.endswith(".lance")]
            others = [name for name in names if _is_other(name)]
            found += [(Path(place) / name).relative_to(root).as_posix() for name in others]
    return sorted(found)


def _is_other(name: str) -> bool:
    if not suffix_of(name) or name.startswith("."):
        return False
    return not (is_picture(name) or is_tar(name) or why_unread(name))


def parts_of(paths: Iterable[str | Path], prefix: str = "") -> Iterator[Part]:
    """The parts of all sources, in order; folders are walked, shards are not opened.

    Raises:
        ConfigError: as `open_sources`
    """
    places = [path.absolute() for path in expand(paths)]
    readers = [reader_of(place) for place in places]
    waiting: list[Item | Skipped] = []
    for place, reader in zip(places, readers, strict=True):
        is_folder = reader is folder_items
        found: Iterator[Any] = iter([place])
        if is_folder:
            found = walk_folder(place, lambda tar: iter([tar]))
        elif is_picture(place.name):
            found = reader(place)
        for one in found:
            is_shard = not isinstance(one, Item | Skipped)
            if not is_shard:
                waiting += prefixed(iter([one]), prefix)
            if waiting and (is_shard or len(waiting) == FILES):
                yield Part(tuple(waiting))
                waiting = []
            if is_shard:
                yield Part(shard=one, root=place if is_folder else None, prefix=prefix)
    yield from parts_of_stream(waiting)


def parts_of_stream(stream: Iterable[Item | Skipped]) -> Iterator[Part]:
    """Items that were listed already, in parts."""
    rest = iter(stream)
    while some := tuple(islice(rest, FILES)):
        yield Part(some)


def _file_stamp(file: Path) -> list[str | int | float]:
    try:
        status = file.stat()
    except Exception:  # clients of stores have no common base; reading it tells what is wrong
        return [str(file)]
    time = status.st_mtime if is_remote(file) else status.st_mtime_ns
    return [str(file), status.st_size, time]
