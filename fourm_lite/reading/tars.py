"""Tars, read as a stream within the budget and never unpacked.

A member's name is only a name, so ``../`` in it can neither read nor write outside; links and
devices are told of instead of followed. What a header says of its member's size is compared with
what can still come before any of it is read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fourm_lite.errors import ReadError
from fourm_lite.names import is_inside, shown
from fourm_lite.reading.regular import (
    PHOTO_BYTES,
    allowance,
    budget,
    limited,
    open_regular,
    size_of,
    stored_bytes,
    too_large,
)

UNPACKED = 100
"""So many times its own size a compressed tar may hold, beyond the budget; photos hardly shrink."""
_PACKED: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)), (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)  # fmt: skip
_DAMAGE = (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError, OverflowError)


@dataclass(frozen=True)
class Member:
    """A file of a tar, or why it is not taken."""

    name: str
    data: bytes = field(default=b"", repr=False)
    refused: str = ""


def read_tar(path: Path) -> Iterator[Member]:
    """The files of a tar one after the other; folders are left out.

    Raises:
        ReadError: it cannot be read to its end; what came before was given
    """
    with open_regular(path) as file:
        packed = _packing(file)
        limit = allowance(file)
        if packed is not None:
            limit = max(limit, UNPACKED * stored_bytes(file))
        else:
            limit = min(limit, size_of(file))
        stream = _Counted(file if packed is None else packed(file), limit, path)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
                yield from _members(tar, stream, path)
        except ReadError:
            raise
        except (OSError, *_DAMAGE) as error:
            raise ReadError(f"the tar {path} cannot be read to its end: {error}") from error


def _members(tar: tarfile.TarFile, stream: _Counted, path: Path) -> Iterator[Member]:
    for member in tar:
        name = member.name.removeprefix("./")
        reason = _refusal(member)
        if member.size > max(0, stream.left + tarfile.RECORDSIZE):
            # To step over it would mean to read what is not there, byte by byte
            raise ReadError(
                f"the tar {path} cannot be read to its end: {shown(name)[:200]!r} would take "
                f"{member.size} bytes, more than are there or are read at once (--max-bytes)"
            )
        if reason:
            yield Member(name, refused=reason)
        elif member.isfile():
            source = tar.extractfile(member)
            data = b"" if source is None else limited(source, PHOTO_BYTES, shown(name))
            yield Member(name, bytes(data))


def _refusal(member: tarfile.TarInfo) -> str:
    """Why a member is not taken; a folder is neither taken nor refused."""
    if not is_inside(member.name.removeprefix("./") or "."):
        return "its name points outside of the tar"
    if member.issym() or member.islnk():
        return f"a link, to {shown(member.linkname)!r}; links are not followed"
    if not member.isfile() and not member.isdir():
        return "a device or another special file"
    if member.size > PHOTO_BYTES:
        return f"{member.size} bytes are more than {PHOTO_BYTES}"
    return ""


def _packing(file: IO[bytes]) -> Any:
    """What unpacks a file, by its first bytes; None for a plain tar."""
    start = file.read(6)
    file.seek(0)
    return next((opener for magic, opener in _PACKED if start.startswith(magic)), None)


class _Counted:
    """What a tar is read through: it counts, and ends the reading where it is too much."""

    def __init__(self, stream: IO[bytes], limit: int, path: Path) -> None:
        self._stream, self._limit, self._path = stream, limit, path
        self._given = 0

    @property
    def left(self) -> int:
        """How many bytes can still come."""
        return self._limit - self._given

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            ReadError: there are more than are read at all
        """
        data = self._stream.read(min(count, budget().bytes))
        self._given += len(data)
        if self._given > self._limit:
            raise ReadError(too_large(str(self._path), self._given, self._limit))
        return data
