"""Where pictures come from: folders, tars, JSONL, Parquet and LanceDB, all as one stream of items.

Nothing is trusted and nothing stops the stream: what cannot be used comes as ``Skipped`` with its
reason, in its place. An item carries its own columns, so a bad neighbour cannot shift them. Links
to folders are followed, and a folder is read once. Tars are read as a stream and never unpacked: a
member's name is only a name, so ``../`` in it can neither read nor write outside, and links and
devices are listed instead of followed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.errors import ConfigError, ReadError
from fourm_lite.photos.item import (
    LINE_ENDINGS,
    PARQUET_ENDINGS,
    HeldContent,
    Item,
    Skipped,
    Stream,
    begins_with,
    clean_columns,
    file_item,
    is_picture,
    is_tar,
    printable,
    split_uri,
    stem_of,
    why_unread,
)
from fourm_lite.photos.lists import parse_row
from fourm_lite.photos.table_rows import (
    USUAL,
    Naming,
    is_lance,
    json_items,
    lance_items,
    parquet_items,
    read_row,
)
from fourm_lite.reading.regular import budget, read_photo
from fourm_lite.reading.remote import expand, files_below, is_remote
from fourm_lite.reading.tars import read_tar

LARGEST_SIDECAR = 1 << 20
_SIDECARS = (".txt", ".json", ".cls")


def tar_items(path: Path) -> Stream:
    """The pictures of a webdataset shard.

    Members that follow each other and share a name up to the first dot are one sample: its
    ``.txt`` becomes the column ``caption``, its ``.cls`` ``label``, its ``.json`` any columns. What
    stands between the first dot and the last ties files together: ``1.left.txt`` tells of
    ``1.left.jpg`` alone, ``1.txt`` of all pictures of the sample.
    """
    reader = _Samples(path)
    sample: list[_Member] = []
    held = 0
    for member in _members(path):
        if isinstance(member, Skipped):
            yield member
            continue
        if sample and member.key != sample[0].key:
            yield from reader.items(sample)
            sample, held = [], 0
        held += len(member.data)
        if held > budget().bytes:
            reason = f"its sample holds more than {budget().bytes} bytes, which are read at once"
            yield Skipped(f"{printable(str(path))}::{printable(member.name)}", reason)
            continue
        sample.append(member)
    yield from reader.items(sample)


def read_member(path: Path, member: str) -> bytes:
    """The bytes of one member of a tar.

    Raises:
        KeyError: there is no such member
    """
    for found in _members(path):
        if isinstance(found, _Member) and printable(found.name) == member:
            return found.data
    raise KeyError(member)


@dataclass(frozen=True)
class _Member:
    """A file of a tar: ``a/1.left.jpg`` has the key ``a/1``, tie ``.left`` and end ``.jpg``."""

    name: str
    data: bytes = field(repr=False)

    @property
    def key(self) -> str:
        folder, slash, last = self.name.rpartition("/")
        return folder + slash + last.partition(".")[0]

    @property
    def ending(self) -> str:
        return self.name[len(self.key) :]

    @property
    def tie(self) -> str:
        return self.ending.rpartition(".")[0]

    @property
    def end(self) -> str:
        return "." + self.ending.rpartition(".")[2].lower()


@dataclass
class _Samples:
    """Makes items of samples; a name that came before in this tar gets its ending too."""

    path: Path
    seen: set[str] = field(default_factory=set)

    def items(self, sample: list[_Member]) -> Stream:
        """The pictures of one sample, each with its columns."""
        pictures = [m for m in sample if is_picture(m.name)]
        told: list[dict[str, Any]] = [{} for _ in pictures]
        for member in sample:
            if reason := why_unread(member.name):
                yield Skipped(self._uri(member), reason)
            if member.end not in _SIDECARS:
                continue
            try:
                value = _sidecar(member)
            except ValueError as error:
                yield Skipped(self._uri(member), f"left out of the columns: {error}")
                continue
            for picture, fields in zip(pictures, told, strict=True):
                if member.tie in ("", picture.tie):
                    fields[member.end[1:]] = value
        plain = [m for m in pictures if not m.tie]
        first = plain[0] if len(plain) == 1 and len(pictures) > 1 else None
        for picture, fields in zip(pictures, told, strict=True):
            yield self._item(picture, first, fields, len(pictures) == 1)

    def _item(
        self, picture: _Member, first: _Member | None, fields: dict[str, Any], is_alone: bool
    ) -> Item:
        own = picture.key + picture.ending.lower()
        name = picture.key if is_alone and picture.key not in self.seen else own
        key = picture.key if picture is first and picture.key not in self.seen else name
        self.seen |= {name, key}
        shard = self.path.name.split(".")[0]
        return Item(
            printable(f"{shard}/{name}"), self._uri(picture), HeldContent(picture.data),
            clean_columns(_columns(fields)), key=printable(key), fields=fields,
            beside="" if first in (None, picture) else printable(picture.key),
        )  # fmt: skip

    def _uri(self, member: _Member) -> str:
        return f"{printable(str(self.path))}::{printable(member.name)}"


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the files beside a picture say, in the order of the tar."""
    columns: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "json":
            columns.update(value)
        elif name == "txt":
            columns["caption"] = value
        else:
            columns["label"] = int(value) if value.isascii() and value.isdigit() else value
    return columns


def _sidecar(member: _Member) -> Any:
    if len(member.data) > LARGEST_SIDECAR:
        raise ValueError(f"{len(member.data)} bytes are more than {LARGEST_SIDECAR}")
    return parse_row(member.data) if member.end == ".json" else member.data.decode("utf-8").strip()


def _members(path: Path) -> Iterator[_Member | Skipped]:
    place = printable(str(path))
    try:
        for member in read_tar(path):
            if member.refused:
                yield Skipped(f"{place}::{printable(member.name)}", member.refused)
            else:
                yield _Member(member.name, member.data)
    except ReadError as error:
        yield Skipped(place, str(error))


SNIFFED = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
OpenTar = Callable[[Path], Iterator[Any]]
"""A tar in a folder -> what stands for it."""


def open_sources(paths: Iterable[str | Path], *, prefix: str = "") -> Stream:
    """The items of every folder or file, one source after the other.

    Args:
        paths: folders, ``.tar`` shards (also compressed), ``.parquet``, ``.jsonl``, tables of
            LanceDB (``NAME.lance``), single pictures; also at ``s3://``, ``gs://``, ``https://``,
            and patterns such as ``shard-{000..099}.tar``
        prefix: put before every id, so that two folders with equal names keep apart

    Raises:
        ConfigError: a path is not there or of a kind that is not read; said before the first item
    """
    # Absolute, because a row outlives the folder that it was indexed from.
    places = [path.absolute() for path in expand(paths)]
    return prefixed(_chain([(place, reader_of(place)) for place in places]), prefix)


def folder_items(root: Path, *, tars: bool = True) -> Stream:
    """Every picture below a folder in the order of names; links are followed, loops are not.

    Photos of a kind that is not read are listed, other files are left out without a word.

    Args:
        root: the folder
        tars: whether tar shards inside the folder are opened too, or listed
    """
    yield from walk_folder(root, (lambda tar: tar_below(tar, root)) if tars else _listed_tar)


def walk_folder(root: Path, open_tar: OpenTar) -> Iterator[Any]:
    """`folder_items`, with what `open_tar` gives for a tar in the tar's place."""
    if is_remote(root):
        yield from _bucket_items(root, open_tar)
        return
    yield from _Walk(root, open_tar, {_identity(root)}).items(root, ())


def _bucket_items(root: Path, open_tar: OpenTar) -> Iterator[Any]:
    """The files of an object store, which knows names alone: no links and no pipes."""
    walk = _Walk(root, open_tar, set())
    try:
        files = files_below(root)
    except ReadError as error:
        yield Skipped(str(root), str(error))
        return
    for path in files:
        yield from walk.named(path)


def reader_of(path: Path, naming: Naming = USUAL) -> Callable[[Path], Stream]:
    """What reads this path.

    Raises:
        ConfigError: it is not there, or of a kind that is not read
    """
    name = path.name.lower()
    if is_remote(path) and not _is_file_name(name):
        return folder_items
    if not is_remote(path) and path.is_dir():
        return (lambda place: lance_items(place, naming)) if is_lance(path) else folder_items
    if not is_remote(path) and not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    if not is_remote(path) and not path.is_file():
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


def _is_file_name(name: str) -> bool:
    return is_tar(name) or is_picture(name) or name.endswith((*PARQUET_ENDINGS, *LINE_ENDINGS))


def read_uri(uri: str) -> bytes:
    """The bytes of an item that was indexed, by the ``uri`` in its row.

    Raises:
        ConfigError: it is not there any more
    """
    path, member = split_uri(uri)
    try:
        if not member:
            return read_photo(path)
        return read_member(path, member) if is_tar(path.name) else read_row(path, int(member))
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"{uri} cannot be read any more: {error}") from error


def _chain(chosen: list[tuple[Path, Callable[[Path], Stream]]]) -> Stream:
    for path, reader in chosen:
        yield from reader(path)


def prefixed(stream: Stream, prefix: str) -> Stream:
    """The stream with a text before every id."""
    for item in stream:
        if isinstance(item, Item) and prefix:
            item = dataclasses.replace(item, id=prefix + item.id)
        yield item


@dataclass
class _Walk:
    """One walk over a folder; `seen` are the folders that were entered."""

    root: Path
    open_tar: OpenTar
    seen: set[tuple[int, int]]

    def items(self, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Any]:
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

    def _file(self, path: Path) -> Iterator[Any]:
        place, wanted = printable(str(path)), is_picture(path.name)
        if path.is_symlink() and not os.path.exists(path):
            if wanted or not path.suffix:
                yield Skipped(place, "broken link")
        elif not path.is_file():
            yield Skipped(place, "not a regular file; it is not opened")
        elif not path.suffix and begins_with(path, SNIFFED):
            yield file_item(path, path.relative_to(self.root).as_posix())
        else:
            yield from self.named(path)

    def named(self, path: Path) -> Iterator[Any]:
        """What a file gives by its name."""
        if is_picture(path.name):
            yield file_item(path, path.relative_to(self.root).as_posix())
        elif is_tar(path.name):
            yield from self.open_tar(path)
        elif reason := why_unread(path.name):
            yield Skipped(printable(str(path)), reason)


def tar_below(path: Path, root: Path) -> Stream:
    """The pictures of a tar that lies in a folder; their ids say where."""
    folder = path.relative_to(root).parent.as_posix()
    for item in tar_items(path):
        if isinstance(item, Item) and folder != ".":
            item = dataclasses.replace(
                item, id=f"{folder}/{item.id}", key=f"{folder}/{stem_of(path.name)}/{item.key}"
            )
        yield item


def _listed_tar(path: Path) -> Stream:
    reason = "a tar inside of a folder is not opened here; give it by itself"
    yield Skipped(printable(str(path)), reason)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
