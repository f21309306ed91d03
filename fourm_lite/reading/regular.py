"""Regular files, read within one budget; pipes and devices are refused and never opened.

What a file declares of its sizes is not believed: bytes are counted while they are read. What is
read at once may be as large as its file really is on the disk, or as the budget, whichever is more:
so an honest large file is read, and a small one that grows when it is unpacked, or a sparse one, is
not.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from fourm_lite.errors import ConfigError, ReadError
from fourm_lite.reading import remote
from fourm_lite.reading.remote import is_remote, open_remote, place

VARIABLE = "FOURM_LITE_MAX_BYTES"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class Budget:
    """How much is read at once from a file that is smaller on the disk.

    Units:
        bytes: of a file, a member of an archive, a line, or all that a compressed archive holds
        rows: of a table; columns: of a row
    """

    bytes: int = 1 << 30
    rows: int = 1 << 20
    columns: int = 1000


_now = Budget()


def budget() -> Budget:
    """The budget in force; the variable FOURM_LITE_MAX_BYTES sets its bytes at the start."""
    return _now


def set_budget(**changes: int) -> None:
    """Changes the budget of this process: `set_budget(bytes=8 << 30)`.

    Raises:
        ConfigError: no such number, or one below 1
    """
    global _now
    for name, value in changes.items():
        if name not in Budget.__dataclass_fields__ or type(value) is not int or value < 1:
            known = ", ".join(Budget.__dataclass_fields__)
            raise ConfigError(f"a budget says {known}, each at least 1, got {name}={value!r}")
    _now = replace(_now, **changes)


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    >>> parse_bytes("512"), parse_bytes("4GB"), parse_bytes("1.5 MiB")
    (512, 4294967296, 1572864)

    Raises:
        ConfigError: it is none
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if found is None or float(found[1]) * _UNITS[found[2]] < 1:
        raise ConfigError(f"expected a number of bytes such as 512MB or 8GB, got {text[:40]!r}")
    return int(float(found[1]) * _UNITS[found[2]])


if VARIABLE in os.environ:
    with contextlib.suppress(ConfigError):  # told by whoever reads the option
        set_budget(bytes=parse_bytes(os.environ[VARIABLE]))


PHOTO_BYTES = 1 << 28
"""No photo is larger, whatever the budget: a picture of as many pixels as are read takes less."""
SMALL = 1 << 24
"""Bytes of a file that a person or a program wrote down: a recipe, a configuration, a book."""
CHUNK = 1 << 20


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[IO[bytes]]:
    """An open file; pipes, devices and links to them are refused and never opened.

    Raises:
        ReadError: it is missing, no regular file, or may not be read
    """
    if is_remote(path):
        with read_errors(path), open_remote(place(path)) as file:
            yield file if file.seekable() else io.BytesIO(limited(file, budget().bytes, str(path)))
        return
    with read_errors(path):
        _require_regular(os.stat(path), path)
        # not to wait for a writer, should a pipe have taken the file's place since
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            _require_regular(os.fstat(file.fileno()), path)
            yield file


@contextlib.contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Turns what the system says of a file in the block into one sentence.

    Raises:
        ReadError: the block raised an OSError, or the name is one that no file can have
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeEncodeError, ValueError) as error:
        if isinstance(error, ConfigError) or "\0" not in str(path):
            raise
        raise ReadError(f"cannot read {str(path)!r}: no file can be called so") from error


def _require_regular(found: os.stat_result, path: str | Path) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    kinds = {
        stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
    }  # fmt: skip
    kind = next((words for test, words in kinds.items() if test(found.st_mode)), "no file")
    raise ReadError(f"cannot read {path}: not a regular file but {kind}; it is not opened")


def allowance(file: IO[bytes]) -> int:
    """How many bytes may be read at once of what an open file holds."""
    return max(budget().bytes, stored_bytes(file))


def stored_bytes(file: IO[bytes]) -> int:
    """What an open file takes on the disk, or in its store."""
    if (number := _descriptor(file)) is None:
        return remote.stored_bytes(file)
    return os.fstat(number).st_blocks * 512


def size_of(file: IO[bytes]) -> int:
    """How many bytes an open file says that it has."""
    if (number := _descriptor(file)) is not None:
        return os.fstat(number).st_size
    before = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(before)
    return size


def _descriptor(file: IO[bytes]) -> int | None:
    """The number of a file of this machine; None for remote ones."""
    try:
        return file.fileno()
    except (OSError, AttributeError):
        return None


def read_bytes(path: str | Path, *, most: int | None = None) -> bytes:
    """The bytes of a whole file.

    Args:
        path: the file
        most: bytes that are read; what its size on the disk or the budget allows by default

    Raises:
        ReadError: it is no regular file, is larger than is allowed, or cannot be read
    """
    with open_regular(path) as file:
        limit = allowance(file) if most is None else most
        size = size_of(file)
        data = b"" if size > limit else file.read(limit + 1)
        if size > limit or len(data) > limit:
            raise ReadError(too_large(str(path), size, limit))
        return data


def read_photo(path: str | Path) -> bytes:
    """The bytes of a picture's file.

    Raises:
        ReadError: see `read_bytes`
    """
    return read_bytes(path, most=PHOTO_BYTES)


def read_text(path: str | Path, *, most: int = SMALL) -> str:
    """The text of a small file.

    Raises:
        ReadError: see `read_bytes`; or it is not UTF-8
    """
    try:
        return read_bytes(path, most=most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReadError(f"{path} should be text in UTF-8: {error.reason}") from error


def check_size(path: str | Path) -> None:
    """Refuses a file that is larger than its place on the disk and the budget.

    Raises:
        ReadError: it is, or it is no regular file
    """
    with open_regular(path) as file:
        limit, size = allowance(file), size_of(file)
        if size > limit:
            raise ReadError(too_large(str(path), size, limit))


def too_large(what: str, size: int, limit: int) -> str:
    """Why something is not read to its end, and which option allows it."""
    return (
        f"{what} holds {size} bytes or more, at most {limit} are read at once; if you trust it, "
        f"raise --max-bytes ({VARIABLE}, or set_budget)"
    )


def limited(stream: IO[bytes], limit: int, what: str) -> bytearray:
    """All that a stream gives, counted while it is read.

    Raises:
        ReadError: it gives more than `limit` bytes
    """
    data = bytearray()
    while part := stream.read(min(CHUNK, limit + 1 - len(data))):
        data += part
        if len(data) > limit:
            raise ReadError(too_large(what, len(data), limit))
    return data


def lines_of(path: str | Path, *, most: int = SMALL) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers from 1; None stands for one that is too long.

    Raises:
        ReadError: see `check_size`
    """
    check_size(path)
    with open_regular(path) as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            whole = len(line) <= most
            while len(line) > most and not line.endswith(b"\n"):
                line = file.readline(most + 1)
            yield number, line if whole else None


def unzipped(path: Path) -> bytes:
    """The bytes in a .gz file.

    Raises:
        ReadError: it is damaged, or holds more than is allowed
    """
    import gzip

    try:
        with open_regular(path) as file, gzip.open(file) as stream:
            return bytes(limited(stream, allowance(file), str(path)))  # type: ignore[arg-type]
    except (EOFError, zlib.error) as error:
        raise ReadError(f"{path} is damaged: {error}") from error
