"""Pictures in webdataset tars.

Tars are read as a stream and never unpacked: a member's name is only a name, so ``../`` in it can
neither read nor write outside, and links and devices are listed instead of followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm_lite.errors import ReadError
from fourm_lite.photos.item import (
    HeldContent,
    Item,
    Skipped,
    Stream,
    clean_columns,
    is_picture,
    printable,
    why_unread,
)
from fourm_lite.photos.lists import parse_row
from fourm_lite.reading.regular import budget
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
        """The pictures of one sample, each with what is said of it."""
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
